"""DeepSpeed behind five methods: accumulate, step, and the optimizer's state parameter by parameter.

Gradients are exact by construction. Every micro-step's loss is a sum over targets, scaled by workers / global targets: ZeRO
averages over workers, so the result is (sum of all token losses) / (all targets of the step), whatever the micro-batches,
the accumulation or the number of workers. DeepSpeed's own division by accumulation steps is off, and the caller owns the
accumulation boundary, so a short last step of an epoch needs nothing special.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import Module, Parameter

from shoal.plan.types import Layout, OptimizerPlan
from shoal.rows.template import Encoded
from shoal.tasks import causal_lm
from shoal.train.collective import exchange
from shoal.train.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")
State = dict[str, torch.Tensor]
"""`param`, `exp_avg`, `exp_avg_sq` of one parameter: whole, fp32, on the CPU."""


class NotANumber(ArithmeticError):
    """The global gradient of a step is infinite or no number; nothing was moved."""


class LossModule(Module):
    """What DeepSpeed wraps: a batch in, a summed loss out, so that ZeRO's hooks see one ordinary forward."""

    def __init__(self, model: Module, *, gathered: bool):
        super().__init__()
        self.model = model
        self.gathered = gathered

    def forward(self, batch: causal_lm.Batch, *, logits: bool = False) -> torch.Tensor:
        if logits:
            return causal_lm.logits(self.model, batch)
        return causal_lm.loss_sum(self.model, batch, gathered=self.gathered)


class Engine:
    """One worker's share of training `model`. All methods are collective: every rank calls them in the same order."""

    def __init__(self, model: Module, layout: Layout, optimizer: OptimizerPlan, world: World):
        deepspeed = _deepspeed(world)
        self.model = model
        self.world = world
        self.stage = layout.stage
        self.device = place(layout, world)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # The rate is set before every step; at 0 nothing that DeepSpeed does on its own can move a weight.
        adam = torch.optim.AdamW(
            _groups(self._parameters, optimizer.weight_decay),
            lr=0.0,
            betas=(optimizer.adam_beta1, optimizer.adam_beta2),
            eps=optimizer.adam_epsilon,
        )
        self._engine, *_ = deepspeed.initialize(
            model=LossModule(model, gathered=layout.stage < 3),
            optimizer=adam,
            config=layout.deepspeed,
            dist_init_required=False,
        )
        self._adam: torch.optim.Optimizer = adam
        self._zero = layout.stage > 0 or self._engine.bfloat16_enabled()
        self._norm: float | None = None
        if not self._zero:
            # DeepSpeed's own clipping forgets the norm, and lets one that is no number through.
            self._engine.clip_fp32_gradients = lambda: None
            adam.register_step_pre_hook(self._clip)
        self._make_moments()

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def accumulate(self, batch: causal_lm.Batch, targets: int) -> torch.Tensor:
        """Adds the batch's share of the global gradient; `targets` is the step's global number. Returns the loss sum."""
        total = self._engine(batch)
        self._engine.backward(total * (self.world.size / targets), scale_wrt_gas=False)
        return total.detach()

    def loss_sum(self, batch: causal_lm.Batch) -> torch.Tensor:
        """The loss sum without a gradient."""
        with torch.no_grad():
            return self._engine(batch)

    def logits(self, row: np.ndarray) -> np.ndarray:
        """(tokens, vocabulary) fp32 logits of one row of token ids."""
        document = Encoded(input_ids=row, loss_mask=np.zeros(len(row), dtype=np.bool_))
        with torch.no_grad():
            return self._engine(causal_lm.collate([document], self.device), logits=True).cpu().numpy()

    def step(self, learning_rate: float) -> float | None:
        """Clips, updates, clears. Returns the norm of the global gradient before clipping; None where ZeRO takes none.

        Raises NotANumber, with the weights as they were, when the gradient is not finite.
        """
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._zero else self._norm
        if norm is not None and not math.isfinite(float(norm)):
            raise NotANumber(float(norm))  # ZeRO skips such an update by itself, and _clip has it skipped without ZeRO
        return None if norm is None else float(norm)

    def discard(self) -> None:
        """Forgets the gradient accumulated since the last step; weights and moments stay as they are."""
        if not self._zero:
            self._engine.zero_grad()
            return
        # ZeRO clears what it has gathered when it finds an overflow, which it is told of at this one place.
        optimizer: Any = self._engine.optimizer
        optimizer._update_scale = lambda _: setattr(optimizer, "overflow", True)
        try:
            self._engine.step()
        finally:
            del optimizer._update_scale

    def names(self) -> list[str]:
        """Trainable parameters, as the model names them."""
        return list(self._parameters)

    def holders(self) -> Sequence[Collection[int]]:
        """For each name the ranks that have its whole state in memory: all without ZeRO; under stages 1 and 2, which
        cut one flat row of all parameters into a piece per rank, the one whose piece it lies in, if any; under 3 none."""
        if not self._zero:
            return [range(self.world.size)] * len(self._parameters)
        here = [self.stage < 3 and _lies_here(parameter) for parameter in self._parameters.values()]
        everywhere = zip(*exchange(self.world, here), strict=True)
        return [[rank for rank, held in enumerate(holding) if held] for holding in everywhere]

    def read_held(self, name: str) -> State:
        """A copy of a state that lies in this rank's memory; asks no other rank."""
        parameter: Any = self._parameters[name]
        if not self._zero:
            moments = self._adam.state[parameter]
            tensors = {"param": parameter} | {key: moments[key] for key in MOMENTS}
        else:
            mapping = parameter._hp_mapping
            tensors = {"param": mapping.get_hp_fragment()}
            tensors |= {key: mapping.get_hp_fragment(optim_state_key=key) for key in MOMENTS}
        return {
            key: tensor.detach().to("cpu", torch.float32, copy=True).reshape(parameter.shape)
            for key, tensor in tensors.items()
        }

    def read_state(self, name: str) -> State:
        """One parameter's master weights and moments."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        if not self._zero:
            moments = self._adam.state[parameter]
            tensors = {"param": parameter} | {key: moments[key] for key in MOMENTS}
        else:
            tensors = {"param": safe_get_full_fp32_param(parameter)}
            tensors |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        assert all(tensor is not None for tensor in tensors.values()), f"{name} is not DeepSpeed's"
        return {key: tensor.detach().float().cpu() for key, tensor in tensors.items() if tensor is not None}

    def write_state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Puts one parameter back: master weights, moments and the weights that forward reads."""
        parameter = self._parameters[name]
        if not self._zero:
            parameter.data.copy_(state["param"])
            for key in MOMENTS:
                self._adam.state[parameter][key].copy_(state[key])
        elif self.stage == 3:
            self._write_partition(parameter, state)
        else:
            from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

            parameter.data.copy_(state["param"])
            safe_set_full_fp32_param(parameter, state["param"].to(self.device))
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[key].to(self.device), key)

    def set_step(self, step: int) -> None:
        """Tells AdamW how many steps lie behind it, for its bias correction."""
        for state in self._adam.state.values():
            state["step"] = torch.tensor(float(step))

    def _clip(self, *_: object) -> None:
        """Before AdamW moves anything: a gradient that is no number goes, and AdamW leaves alone what has none."""
        limit = self._engine.gradient_clipping() or float("inf")
        gradients = [one.grad for one in self._parameters.values() if one.grad is not None]
        # In double precision, as under ZeRO: summed in floats, the squares of millions of numbers are off by 1e-4, which
        # every clipped step would carry on.
        norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
        torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), limit, norm.float())
        self._norm = float(norm)
        if not math.isfinite(self._norm):
            self._engine.zero_grad()

    def _make_moments(self) -> None:
        """AdamW would make its state at the first step, when a resume is too late, and DeepSpeed would link only the
        first parameter group's."""
        for flat in self._flat_parameters():
            zeros = {key: torch.zeros_like(flat.data) for key in MOMENTS}
            self._adam.state[flat] = {"step": torch.tensor(0.0)} | zeros
        if self._zero and self.stage < 3:
            optimizer: Any = self._engine.optimizer
            optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_parameters(self) -> list[torch.Tensor]:
        """The tensors AdamW really updates: the parameters, or this rank's flat fp32 partitions of them."""
        optimizer: Any = self._engine.optimizer
        if self.stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._adam.param_groups for parameter in group["params"]]

    def _write_partition(self, parameter: Parameter, state: Mapping[str, torch.Tensor]) -> None:
        from deepspeed import zero
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        mine = safe_get_local_fp32_param(parameter).numel()
        for key, tensor in state.items():
            flat = tensor.flatten()
            padded = torch.nn.functional.pad(flat, (0, mine * self.world.size - flat.numel())).to(self.device)
            part = padded.narrow(0, mine * self.world.rank, mine)
            if key == "param":
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, key)
        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(state["param"])

    def __repr__(self) -> str:
        return f"Engine(rank {self.world.rank} of {self.world.size}, ZeRO {self.stage})"


def place(layout: Layout, world: World) -> torch.device:
    """The device that this worker drives."""
    return torch.device("cuda", world.local_rank) if layout.device == "cuda" else torch.device("cpu")


def _lies_here(parameter: Any) -> bool:
    """Whether this rank's piece of ZeRO 1 and 2's flat row holds the whole of `parameter`."""
    mapping = getattr(parameter, "_hp_mapping", None)
    return mapping is not None and mapping.lp_fragment_address.numel == parameter.numel()


def _groups(parameters: Mapping[str, Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms (one-dimensional) are not decayed, as in transformers' Trainer."""
    decayed = [p for p in parameters.values() if p.ndim > 1]
    spared = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _deepspeed(world: World) -> Any:
    """DeepSpeed with a process group under it, and without the op it would compile for minutes on a CPU."""
    os.environ["LOCAL_RANK"] = str(world.local_rank)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not distributed.is_initialized():
        assert world.size == 1, "a backend starts the process group of several workers"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(verbose=False)
    return deepspeed
