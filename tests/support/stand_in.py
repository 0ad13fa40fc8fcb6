"""A plan, a tiny model and an engine in memory, for what surrounds training: checkpoints, journal, export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shoal.plan.types import (
    CheckpointPlan,
    Count,
    DataPlan,
    Layout,
    ModelPlan,
    OptimizerPlan,
    Plan,
    SourceObject,
    SourcePlan,
    StoragePlan,
    Trajectory,
)
from shoal.spec.cluster import S3Spec
from shoal.spec.job import LoraSpec, QuantizationSpec
from shoal.train.world import Event


def make_plan(root: Path, base: str = "tiny", method: str = "lora", **changes: Any) -> Plan:
    """A complete plan with everything under `root`; `changes` are fields of the trajectory."""
    source = SourceObject(url=str(root / "private" / "train.jsonl"), size=1, etag="e")
    trajectory = {
        "model": ModelPlan(
            base=base,
            kind="folder",
            gguf=False,
            revision=None,
            digest="d",
            tokenizer_digest="t",
            architecture="LlamaForCausalLM",
            num_parameters=1,
            vocab_size=320,
            hidden_size=64,
            num_hidden_layers=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            adapter=None,
            token=None,
            trust_remote_code=False,
        ),
        "task": "causal-lm",
        "method": method,
        "lora": None if method == "full" else LoraSpec(r=4, lora_alpha=8),
        "quantization": QuantizationSpec() if method == "qlora" else None,
        "data": DataPlan(
            train=(SourcePlan(path=source.url, objects=(source,), format="text", columns={}, weight=1.0),),
            validation=(),
            validation_fraction=0.1,
            train_on="assistant",
            chat_template=None,
            sequence_length=64,
            packing=True,
            overlength="reject",
            max_rejected=0.01,
            digest="0123",
        ),
        "dtype": "fp32",
        "num_train_epochs": 1,
        "max_steps": None,
        "batch_size": 4,
        "seed": 17,
        "optimizer": OptimizerPlan(
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            adam_epsilon=1e-8,
        ),
        "steps": Count(value=10),
        "steps_per_epoch": Count(value=10),
        "tokens": Count(value=1000),
        "eval_steps": None,
        "early_stopping_patience": None,
        "load_best_model_at_end": False,
        "on_nan": "stop",
    }
    return Plan(
        shoal="0",
        run_id="tiny-20260101-000000-abcd",
        trajectory=Trajectory(**(trajectory | changes)),
        layout=Layout(
            workers=1,
            min_workers=1,
            device="cpu",
            micro_batch_size=1,
            accumulation=4,
            idle_rows=0,
            stage=0,
            offload="none",
            gradient_checkpointing=False,
            attn_implementation="sdpa",
            deepspeed={},
        ),
        storage=StoragePlan(
            run=str(root / "run"),
            prepared=str(root / "prepared"),
            cache=str(root / "cache"),
            cache_bytes=2**30,
            s3=S3Spec(),
        ),
        checkpoint=CheckpointPlan(every_steps=1, keep=2),
        merge=False,
        logging_steps=1,
        self_check=False,
        prompts=(),
        max_failures=0,
        max_preemptions=2,
        hang_timeout_s=600,
        notes=(),
    )


class StandIn:
    """What an engine is to a checkpoint or an export, over a whole model and AdamW on every rank."""

    def __init__(self, model: Any):
        self.model = model
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adam = torch.optim.AdamW(self._parameters.values(), lr=1e-2)
        self.train(0)

    def train(self, steps: int) -> None:
        """Steps on random tokens; 0 only makes the optimizer's state."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        for step in range(max(steps, 1)):
            torch.manual_seed(step)
            tokens = torch.randint(0, vocabulary, (2, 16))
            self.model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            if not steps:
                self._adam.param_groups[0]["lr"], rate = 0.0, self._adam.param_groups[0]["lr"]
            self._adam.step()
            self._adam.zero_grad()
            if not steps:
                self._adam.param_groups[0]["lr"] = rate

    def names(self) -> list[str]:
        return list(self._parameters)

    def holders(self) -> list[range]:
        size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return [range(size)] * len(self._parameters)

    def read_held(self, name: str) -> dict[str, torch.Tensor]:
        return {kind: tensor.clone() for kind, tensor in self.read_state(name).items()}

    def read_state(self, name: str) -> dict[str, torch.Tensor]:
        parameter = self._parameters[name]
        moments = self._adam.state[parameter]
        return {"param": parameter.detach(), "exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}

    def write_state(self, name: str, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for kind, tensor in self.read_state(name).items():
                tensor.copy_(state[kind])

    def states(self) -> dict[str, torch.Tensor]:
        """A copy of everything."""
        return {f"{n}::{k}": tensor.clone() for n in self.names() for k, tensor in self.read_state(n).items()}


class Heard:
    """The voice of a rank that nobody listens to but the test."""

    def __init__(self, flush: Callable[[], None] = lambda: None):
        self.events: list[Event] = []
        self.flush = flush

    def phase(self, phase: str, detail: str = "") -> None:
        self.tell({"kind": "phase", "phase": phase, "detail": detail})

    def tell(self, event: Event, *, record: bool = True) -> None:
        self.events.append(event)

    @property
    def checkpoints(self) -> list[Event]:
        return [event for event in self.events if event["kind"] == "checkpoint"]


def tiny_llama(tied: bool = True, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
        )
    )
