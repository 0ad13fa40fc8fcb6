"""The bound Shoal is compared with: a forward/backward loop with nothing around it, as fast as we could make it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/bare_loop.py --model DIR --batches FILE.npz --report FILE.json

Documents lie end to end in one flat row (no padding), each attends to itself alone, only supervised positions reach the
vocabulary, and the cross-entropy leaves its gradient behind chunk by chunk. Adapters come from peft; their gradients lie in
one flat buffer, summed by one gloo all-reduce. `--verify` proves the gradients against a padded float64 loop.
"""

import argparse
import ctypes
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from batches import Batches, Documents
from torch import distributed
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM

CHUNK = 256
"""Targets projected onto the vocabulary at a time: 50 MB of logits at 49,152 columns."""


def attend(module, query, key, value, attention_mask, scaling=None, lengths=None, **_):
    """query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) -> (1, tokens, heads, dim), by document."""
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


class SummedCrossEntropy(torch.autograd.Function):
    """hidden (targets, width) and a frozen head (vocabulary, width) -> summed loss; the gradient is taken in forward."""

    @staticmethod
    def forward(ctx, hidden, head, labels):
        total = 0.0
        gradient = torch.empty_like(hidden)
        for start in range(0, len(labels), CHUNK):
            rows = slice(start, start + CHUNK)
            label = labels[rows, None]
            logits = hidden[rows] @ head.t()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += float((normaliser - logits.gather(1, label)).sum())
            softmax = logits.sub_(normaliser).exp_()
            softmax.scatter_add_(1, label, softmax.new_full(label.shape, -1.0))
            torch.mm(softmax, head, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return hidden.new_tensor(total)

    @staticmethod
    def backward(ctx, scale):
        return ctx.saved_tensors[0] * scale, None, None


class AdaptedProjection(torch.autograd.Function):
    """x (1, tokens, in) -> x W' + scale (x A') B', one pass over the output each way where peft takes three."""

    @staticmethod
    def forward(ctx, x, weight, a, b, scale):
        x = x[0]
        narrow = x @ a.t()
        ctx.save_for_backward(x, narrow, weight, a, b)
        ctx.scale = scale
        return (x @ weight.t()).addmm_(narrow, b.t(), alpha=scale)[None]

    @staticmethod
    def backward(ctx, gradient):
        x, narrow, weight, a, b = ctx.saved_tensors
        gradient = gradient[0]
        grad_narrow = (gradient @ b).mul_(ctx.scale)
        grad_x = (gradient @ weight).addmm_(grad_narrow, a)[None] if ctx.needs_input_grad[0] else None
        return grad_x, None, grad_narrow.t() @ x, (gradient.t() @ narrow).mul_(ctx.scale), None


def fuse_adapters(model) -> None:
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear):
            base, a, b = module.base_layer.weight, module.lora_A["default"].weight, module.lora_B["default"].weight
            scale = module.scaling["default"]
            module.forward = lambda x, base=base, a=a, b=b, scale=scale: AdaptedProjection.apply(x, base, a, b, scale)


def loss_sum(model, documents: Documents) -> torch.Tensor:
    """Summed cross-entropy over the supervised tokens of the documents, each alone."""
    lengths = [len(ids) for ids in documents.tokens]
    tokens = np.concatenate(documents.tokens)
    supervised = np.concatenate(documents.supervised)
    supervised[np.cumsum([0, *lengths[:-1]])] = False
    targets = np.flatnonzero(supervised)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(
        input_ids=torch.from_numpy(tokens)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        use_cache=False,
        lengths=lengths,
    ).last_hidden_state[0]
    return SummedCrossEntropy.apply(
        hidden[torch.from_numpy(targets - 1)], base.lm_head.weight, torch.from_numpy(tokens[targets])
    )


def build(folder: str, seed: int = 17):
    from peft import LoraConfig, get_peft_model

    AttentionInterface.register("per_document", attend)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="per_document")
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, config).train()


def keep_memory() -> None:
    """Has glibc hand freed memory out again instead of returning it: a page fault per 4 KiB is 4% of a step otherwise."""
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        ctypes.CDLL(None).mallopt(option, value)


def flatten(parameters: list[torch.nn.Parameter]) -> torch.nn.Parameter:
    """One flat parameter whose data and gradient the given ones become views of."""
    flat = torch.nn.Parameter(torch.cat([p.data.flatten() for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        stop = start + p.numel()
        p.data = flat.data[start:stop].view_as(p)
        p.grad = flat.grad[start:stop].view_as(p)
        start = stop
    return flat


def train(given: argparse.Namespace, rank: int, world: int) -> list[dict]:
    """One record per step: wall and CPU seconds of this process, and the step's global tokens, targets and loss."""
    model = build(given.model)
    if given.fuse_adapters:
        fuse_adapters(model)
    flat = flatten([p for p in model.parameters() if p.requires_grad])
    optimizer = torch.optim.AdamW([flat], lr=2e-4, weight_decay=0.0, fused=True)
    batches = Batches(given.batches)
    assert batches.world == world, f"the batches are dealt to {batches.world} ranks, not {world}"
    records = []
    for step in range(min(given.steps, batches.steps)):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens, targets = batches.counts(step)
        loss = 0.0
        for documents in batches.micro_batches(step, rank):
            if documents.tokens:
                part = loss_sum(model, documents) / targets
                part.backward()
                loss += float(part.detach())
        if world > 1:
            distributed.all_reduce(flat.grad)
        norm = torch.nn.utils.clip_grad_norm_([flat], 1.0)
        optimizer.step()
        flat.grad.zero_()
        records.append(
            {
                "step": step + 1,
                "tokens": tokens,
                "targets": targets,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "loss_part": loss,
                "grad_norm": float(norm),
            }
        )
        if rank == 0:
            print(json.dumps(records[-1]), flush=True)
    return records


def verify(folder: str, fused: bool) -> float:
    """Relative error of the adapters' gradients against padded rows, a 4-D mask and plain float64 autograd."""
    random = np.random.default_rng(0)
    lengths = (40, 7, 23)
    tokens = [random.integers(100, 40_000, n) for n in lengths]
    documents = Documents(tokens, [random.random(n) < 0.6 for n in lengths])
    model = build(folder)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    if fused:
        fuse_adapters(model)
    wanted = [p for p in model.parameters() if p.requires_grad]
    loss = loss_sum(model, documents)
    got = torch.autograd.grad(loss, wanted)

    model = build(folder)
    with torch.no_grad():
        for p, q in zip((p for p in model.parameters() if p.requires_grad), wanted, strict=True):
            p.copy_(q)
    model.double().set_attn_implementation("sdpa")
    total = torch.zeros((), dtype=torch.float64)
    padded = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    present = torch.zeros_like(padded)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)], present[row, : len(ids)] = torch.from_numpy(ids), 1
    logits = model(input_ids=padded, attention_mask=present, use_cache=False).logits
    for row, flags in enumerate(documents.supervised):
        keep = torch.from_numpy(np.flatnonzero(flags[1:]))
        total += functional.cross_entropy(logits[row, keep], padded[row, keep + 1], reduction="sum")
    expected = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))
    print(json.dumps({"loss": loss.item(), "expected": total.item(), "worst_relative_error": error}))
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder in Hugging Face's layout")
    parser.add_argument("--batches", type=Path, help="what batches.py wrote")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--report", type=Path, help="a JSON file per rank: REPORT with .RANK before its suffix")
    parser.add_argument("--verify", action="store_true", help="check the gradients and leave")
    parser.add_argument("--fuse-adapters", action="store_true", help="compute peft's adapters in a fused function")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if given.verify:
        raise SystemExit(0 if verify(given.model, given.fuse_adapters) < 1e-4 else 1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        distributed.init_process_group("gloo")
    records = train(given, rank, world)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if given.report:
        body = {"rank": rank, "peak_memory_gb": peak, "steps": records}
        given.report.with_suffix(f".{rank}{given.report.suffix}").write_text(json.dumps(body))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
