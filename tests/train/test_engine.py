"""The engine in one process: master weights, round trips of the state, gradient checkpointing, quantised bases."""

from pathlib import Path

import pytest
import torch
from documents import documents
from jobs import job, planned, profile, write_rows

from shoal.plan.types import Plan
from shoal.tasks import causal_lm
from shoal.train.engine import Engine, NotANumber
from shoal.train.model import build
from shoal.train.world import World

CPU = torch.device("cpu")
ROWS = documents(4, 49152)
TARGETS = sum(int(row.loss_mask[1:].sum()) for row in ROWS)


def plan(tmp: Path, model: Path, **sections) -> Plan:
    return planned(job(model, write_rows(tmp / "rows.jsonl"), **sections), profile(tmp))


def engine(made: Plan, model: Path) -> Engine:
    torch.manual_seed(0)
    return Engine(build(made, model, None, World()), made.layout, made.trajectory.optimizer, World())


def steps(made: Engine, count: int, rate: float) -> list[float]:
    made.train()  # transformers checkpoints activations in training alone
    losses = []
    for _ in range(count):
        losses.append(float(made.accumulate(causal_lm.collate(ROWS, CPU), TARGETS)) / TARGETS)
        made.step(rate)
    return losses


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_weights_have_fp32_masters(tmp_path: Path, tiny_model: Path, stage: int):
    """A step of 1e-5 moves no bf16 weight near 1.0; the master keeps it, and twenty such steps add up."""
    made = engine(plan(tmp_path, tiny_model, train={"dtype": "bf16"}, deepspeed={"stage": stage}), tiny_model)
    name = "model.norm.weight"
    before = made.read_state(name)["param"].clone()
    steps(made, 20, 1e-5)
    moved = (made.read_state(name)["param"] - before).abs()
    assert moved.max() > 1e-4 and moved.dtype == torch.float32


def test_adapters_are_fp32_on_a_bf16_base(tmp_path: Path, tiny_model: Path):
    made = engine(plan(tmp_path, tiny_model, method="lora", train={"dtype": "bf16"}), tiny_model)
    dtypes = {p.requires_grad: p.dtype for p in made.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    losses = steps(made, 8, 1e-2)
    assert losses[-1] < losses[0]


def test_the_norm_of_millions_of_numbers_is_one_number_whatever_the_stage(tmp_path: Path, tiny_model: Path):
    """Summed in floats, the squares of an embedding's gradient are off by 1e-4, and each clipped step with them."""
    norms = []
    for stage in (0, 1, 2):
        made = engine(plan(tmp_path, tiny_model, method="full", deepspeed={"stage": stage}), tiny_model)
        made.accumulate(causal_lm.collate(ROWS, CPU), TARGETS)
        norms.append(made.step(0.0))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_written_back_continues_as_if_nothing_happened(tmp_path: Path, tiny_model: Path, stage: int):
    made = plan(tmp_path, tiny_model, deepspeed={"stage": stage})
    first = engine(made, tiny_model)
    steps(first, 3, 1e-2)
    kept = {name: {key: t.clone() for key, t in first.read_state(name).items()} for name in first.names()}
    expected = steps(first, 3, 1e-2)
    second = engine(made, tiny_model)
    for name, state in kept.items():
        second.write_state(name, state)
    second.set_step(3)
    assert steps(second, 3, 1e-2) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (0, "bf16"), (1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_a_state_that_lies_here_is_copied_as_it_is(tmp_path: Path, tiny_model: Path, stage: int, dtype: str):
    method = "lora" if stage == 0 else "full"
    made = engine(
        plan(tmp_path, tiny_model, method=method, train={"dtype": dtype}, deepspeed={"stage": stage}), tiny_model
    )
    steps(made, 2, 1e-2)
    holders = made.holders()
    assert len(holders) == len(made.names())
    if stage == 3:
        assert not any(holders)
        return
    assert all(list(ranks) == [0] for ranks in holders)
    kept = {name: made.read_held(name) for name in made.names()}
    for name, held in kept.items():
        whole = made.read_state(name)
        assert held.keys() == whole.keys()
        for key, tensor in held.items():
            assert tensor.dtype == torch.float32 and tensor.shape == whole[key].shape
            assert torch.equal(tensor, whole[key]) and tensor.data_ptr() != whole[key].data_ptr()
    steps(made, 1, 1e-2)
    assert any(not torch.equal(kept[name]["param"], made.read_state(name)["param"]) for name in kept)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, tiny_model: Path, method: str):
    """With a frozen base the reentrant kind would cut the adapter off, and the loss would stay flat."""
    losses = [
        steps(
            engine(plan(tmp_path, tiny_model, method=method, train={"gradient_checkpointing": on}), tiny_model), 4, 1e-2
        )
        for on in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_a_quantised_base_is_four_bits_and_stays_so(tmp_path: Path, tiny_model: Path):
    import bitsandbytes

    made = engine(plan(tmp_path, tiny_model, method="qlora"), tiny_model)
    quantised = [p for p in made.model.parameters() if isinstance(p, bitsandbytes.nn.Params4bit)]
    assert len(quantised) == 14
    before = [p.detach().clone() for p in quantised]
    steps(made, 2, 1e-2)
    assert all(p.dtype == torch.uint8 and torch.equal(p, old) for p, old in zip(quantised, before, strict=True))


def test_zero_shared_over_cpu_memory(tmp_path: Path, tiny_model: Path):
    plain = steps(engine(plan(tmp_path, tiny_model), tiny_model), 3, 1e-2)
    for offload, stage in (("optimizer", 2), ("parameters", 3)):
        made = plan(tmp_path, tiny_model, deepspeed={"stage": stage, "offload": offload})
        assert steps(engine(made, tiny_model), 3, 1e-2) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_no_number_moves_nothing(tmp_path: Path, tiny_model: Path, stage: int, max_grad_norm: float):
    made = plan(tmp_path, tiny_model, deepspeed={"stage": stage}, optimizer={"max_grad_norm": max_grad_norm})
    poisoned = engine(made, tiny_model)
    before = {name: poisoned.read_state(name)["param"].clone() for name in poisoned.names()}
    norm = poisoned.model.model.norm.weight
    norm.register_hook(lambda gradient: gradient * float("nan"))
    poisoned.train()
    loss = poisoned.accumulate(causal_lm.collate(ROWS, CPU), TARGETS)
    assert loss.isfinite()
    with pytest.raises(NotANumber):
        poisoned.step(1e-2)
    assert all(torch.equal(poisoned.read_state(name)["param"], old) for name, old in before.items())


@pytest.mark.parametrize("how", ["discarded", "poisoned"])
@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16")])
def test_a_gradient_that_was_left_out_leaves_nothing_behind(
    tmp_path: Path, tiny_model: Path, stage: int, dtype: str, how: str
):
    """Weights, moments and the steps that follow are those of an engine that never saw it."""
    made = plan(tmp_path, tiny_model, deepspeed={"stage": stage}, train={"dtype": dtype})
    one, other = engine(made, tiny_model), engine(made, tiny_model)
    for each in (one, other):
        steps(each, 2, 1e-2)
    before = {name: {key: t.clone() for key, t in one.read_state(name).items()} for name in one.names()}
    one.train()
    if how == "discarded":
        for _ in range(2):
            one.accumulate(causal_lm.collate(ROWS, CPU), TARGETS)
        one.discard()
    else:
        hook = one.model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        one.accumulate(causal_lm.collate(ROWS, CPU), TARGETS)
        hook.remove()
        with pytest.raises(NotANumber):
            one.step(1e-2)
    for name, state in before.items():
        now = one.read_state(name)
        assert all(torch.equal(now[key], old) for key, old in state.items()), name
    one.set_step(3)
    other.set_step(3)
    assert steps(one, 3, 1e-2) == steps(other, 3, 1e-2)
