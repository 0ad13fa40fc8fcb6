"""TRL's SFTTrainer as it comes, with LoRA on the same rows, in the same process layout; run by torchrun.

    torchrun --nproc-per-node 2 benchmarks/peers/trl_sft.py --model DIR --rows FILE.jsonl --report FILE.json [--packing]

Set apart from defaults: fp32 (bf16 arithmetic is many times slower on these CPUs), no saving, no tracker, the rank, the
length, the micro-batch and max_steps. Each rank reports its real (non-padding) tokens, targets, wall and CPU seconds by step.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Counting(SFTTrainer):
    """Counts what the loss is computed on; everything else is TRL's."""

    tokens = 0
    targets = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        self.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        self.targets += int((inputs["labels"][:, 1:] != -100).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class Steps(TrainerCallback):
    """One record per optimizer step, from the end of the one before: data loading included, as for the others."""

    def __init__(self):
        self.records: list[dict] = []
        self.trainer: Counting | None = None

    def _lap(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.tokens, self.targets = self.trainer.tokens, self.trainer.targets

    def on_train_begin(self, *args, **kwargs):
        self._lap()

    def on_step_end(self, args, state, control, **kwargs):
        record = {
            "step": state.global_step,
            "tokens": self.trainer.tokens - self.tokens,
            "targets": self.trainer.targets - self.targets,
            "seconds": time.perf_counter() - self.wall,
            "cpu_seconds": time.process_time() - self.cpu,
        }
        self.records.append(record)
        print(json.dumps({"rank": args.process_index, **record}), flush=True)
        self._lap()


def rows(path: Path, limit: int | None) -> Dataset:
    """Conversational prompt and completion: TRL then learns the completion only, as we do."""
    kept = []
    for line in path.read_text().splitlines()[:limit]:
        row = json.loads(line)
        if not row["output"].strip():
            continue
        prompt = "\n\n".join(part for part in (row["instruction"], row.get("input", "")) if part.strip())
        kept.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": row["output"]}],
            }
        )
    return Dataset.from_list(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True, help="a JSON file per rank: .RANK before its suffix")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--limit", type=int, help="use only so many rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = SFTConfig(
        output_dir=str(given.report.parent / "trl-output"),
        packing=given.packing,
        max_length=given.length,
        per_device_train_batch_size=given.micro_batch,
        max_steps=given.steps,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
        seed=17,
    )
    steps = Steps()
    trainer = Counting(
        model=given.model,
        args=config,
        train_dataset=rows(given.rows, given.limit),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
        ),
        callbacks=[steps],
    )
    steps.trainer = trainer
    trainer.train()
    rank = int(os.environ.get("RANK", "0"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    body = {"rank": rank, "peak_memory_gb": peak, "gradient_checkpointing": config.gradient_checkpointing}
    given.report.with_suffix(f".{rank}{given.report.suffix}").write_text(json.dumps(body | {"steps": steps.records}))


if __name__ == "__main__":
    main()
