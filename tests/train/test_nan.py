"""Losses and gradients that are no numbers, for real: one word of the data breaks the model's arithmetic.

The word's embedding is infinite, or zero under a norm with next to no epsilon, whose gradient overflows.
"""

import json
from pathlib import Path

import pytest
import torch
from jobs import job, planned, profile, write_rows
from ranks import run_ranks
from transformers import AutoTokenizer, LlamaForCausalLM

from shoal.errors import TrainingError
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train import entry
from shoal.train.replay import MAX_IN_A_ROW
from shoal.train.world import Directive, World

WORKER = Path(__file__).parent / "trajectory_worker.py"
WORD = " xylophone"
WHAT = ("loss", "gradient")


@pytest.fixture(scope="module")
def token(tiny_model: Path) -> int:
    """The word's first token, which no other word of the rows has."""
    return AutoTokenizer.from_pretrained(tiny_model)(WORD, add_special_tokens=False).input_ids[0]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, token: int) -> dict[str, Path]:
    """{what the word makes infinite: a model}"""
    models = {}
    for what in WHAT:
        model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        if what == "gradient":
            model.config.rms_norm_eps = 1e-44
        with torch.no_grad():
            model.model.embed_tokens.weight[token] = float("inf") if what == "loss" else 0.0
        models[what] = tmp_path_factory.mktemp(f"broken-{what}")
        model.save_pretrained(models[what])
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(models[what])
    return models


def plan(folder: Path, model: Path, on_nan: str, *, every: int, workers: int = 1, stage: int = 0) -> Plan:
    """One epoch over 60 rows, four in a step; each `every`th row holds the word."""
    lines = write_rows(folder / "rows.jsonl").read_text().splitlines()
    for number in range(every - 1, len(lines), every):
        row = json.loads(lines[number])
        row["messages"][1]["content"] += WORD
        lines[number] = json.dumps(row)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    spec = job(
        model,
        folder / "rows.jsonl",
        train={"on_nan": on_nan, "batch_size": 4, "num_train_epochs": 1},
        deepspeed={"stage": stage},
    )
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"validation": 0.0, "packing": False})})
    place = profile(folder, workers, "inline" if workers == 1 else "local")
    return planned(spec, place, f"nan-20260101-000000-{model.name[7:8]}{workers}{stage}{every % 10}")


def told(made: Plan, kind: str) -> list[dict]:
    folder = RunFolder(Storage(), made.storage.run)
    rows = [json.loads(line) for url in (folder.events, folder.metrics) for line in Path(url).read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def trained(folder: Path, plans: list[Plan]) -> list[dict[int, float | None]]:
    """The losses of runs on as many real processes as they are planned for, without the export."""
    (folder / "out").mkdir(exist_ok=True)
    paths = [folder / f"{made.run_id}.json" for made in plans]
    for path, made in zip(paths, plans, strict=True):
        path.write_text(made.model_dump_json())
    run_ranks(WORKER, plans[0].layout.workers, str(folder / "out"), *map(str, paths))
    found = [json.loads((folder / "out" / path.name).read_text())["losses"] for path in paths]
    return [{int(step): loss for step, loss in losses.items()} for losses in found]


def test_skipped_steps_change_nothing_on_any_rank_and_the_others_go_on(tmp_path: Path, broken: dict[str, Path]) -> None:
    alone = [plan(tmp_path, broken[what], "skip", every=20) for what in WHAT]
    layouts = [(what, stage) for what in WHAT for stage in (0, 2, 3)]
    shared = [plan(tmp_path, broken[what], "skip", every=20, workers=2, stage=stage) for what, stage in layouts]
    expected = dict(zip(WHAT, trained(tmp_path, alone), strict=True))
    for what, made in zip(WHAT, alone, strict=True):
        losses, rows = expected[what], told(made, "skipped")
        assert list(losses) == list(range(1, 16)) and 1 <= len(rows) <= 3
        assert [step for step, loss in losses.items() if loss is None] == [row["step"] for row in rows]
        assert {row["what"] for row in rows} == {what}
        held = {sample for row in rows for sample in row["samples"]}
        assert len(held) == 4 * len(rows)
        for number in (20, 40, 60):
            assert any(sample.endswith(f"rows.jsonl/{number}") for sample in held)
    for (what, _), found in zip(layouts, trained(tmp_path, shared), strict=True):
        good = [step for step, loss in expected[what].items() if loss is not None]
        assert [step for step, loss in found.items() if loss is not None] == good
        assert [found[step] for step in good] == pytest.approx([expected[what][step] for step in good], abs=1e-4)


@pytest.mark.parametrize("what", WHAT)
def test_a_run_that_stops_keeps_the_batch(tmp_path: Path, broken: dict[str, Path], token: int, what: str) -> None:
    made = plan(tmp_path, broken[what], "stop", every=20)
    with pytest.raises(
        TrainingError, match=rf"the {what} of the global batch is (nan|inf); the weights were not"
    ) as no:
        entry.run(made, World(), lambda event: Directive.CONTINUE)
    [kept] = [one.url for one in Storage().list(f"{made.storage.run}/replay/")]
    assert f"the whole batch is in {kept}" in str(no.value)
    body = json.loads(Path(kept).read_text())
    assert [row["step"] for row in told(made, "step")] == list(range(1, body["step"]))
    samples = [sample for micro in body["micro_batches"] for sample in micro["samples"]]
    assert len(samples) == 4 and any(token in sample["input_ids"] for sample in samples)
    assert sum(sum(sample["loss_mask"][1:]) for sample in samples) == body["targets"]
    for micro in body["micro_batches"]:
        hit = any(token in sample["input_ids"] for sample in micro["samples"])
        assert isinstance(micro["loss_sum"], str) == (hit and what == "loss")


def test_two_ranks_keep_the_batch_of_both_and_raise_alike(tmp_path: Path, broken: dict[str, Path]) -> None:
    made = plan(tmp_path, broken["loss"], "stop", every=20, workers=2)
    with pytest.raises(AssertionError, match=r"the loss of the global batch is nan; .*the whole batch is in"):
        trained(tmp_path, [made])
    [kept] = [one.url for one in Storage().list(f"{made.storage.run}/replay/")]
    body = json.loads(Path(kept).read_text())
    assert {micro["rank"] for micro in body["micro_batches"]} == {0, 1}
    assert sum(len(micro["samples"]) for micro in body["micro_batches"]) == 4


def test_skipping_has_an_end(tmp_path: Path, broken: dict[str, Path]) -> None:
    made = plan(tmp_path, broken["loss"], "skip", every=1)
    with pytest.raises(TrainingError, match=f"as were the {MAX_IN_A_ROW} steps before it, which were skipped"):
        entry.run(made, World(), lambda event: Directive.CONTINUE)
    assert [row["in_a_row"] for row in told(made, "skipped")] == list(range(1, MAX_IN_A_ROW + 1))
    [kept] = Storage().list(f"{made.storage.run}/replay/")
    assert kept.url.endswith(f"{MAX_IN_A_ROW + 1:08d}.json")


def test_the_policy_belongs_to_the_trajectory(tmp_path: Path, broken: dict[str, Path]) -> None:
    one, other = (plan(tmp_path, broken["loss"], on_nan, every=20) for on_nan in ("stop", "skip"))
    assert one.trajectory_digest != other.trajectory_digest
