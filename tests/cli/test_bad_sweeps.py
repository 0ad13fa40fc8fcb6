"""What a person is told of a `sweep` section that cannot work: all of it at once, before anything starts."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mistakes import Case, write_job
from sweeps import JOB, SWEEP_ID, sweep_plan, write_sweep

from shoal import cli
from shoal.data.summary import PreparedSummary
from shoal.launch import plan_job
from shoal.spec.load import load_job, load_profile
from shoal.storage import Storage
from shoal.tune.space import apply

PROFILE = "two.yaml"
SOUND: dict[str, Any] = {"space": {"optimizer.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "trials": 8, "workers": 1}
HELD_OUT = {"data": {"validation": 0.2}, "train": {"num_train_epochs": 8, "max_steps": 8, "eval_steps": 2}}


def case(name: str, *says: str, on: str = PROFILE, job: dict[str, Any] | None = None, **sweep: Any) -> Case:
    """A sweep that is sound but for what is given."""
    change = {**HELD_OUT, **(job or {}), "sweep": {**SOUND, **sweep}}
    return Case(name, says, change, command=("sweep", "job.yaml"), on=on)


def space(name: str, says: str, /, **fields: Any) -> Case:
    return case(name, says, space={field.replace("__", "."): values for field, values in fields.items()})


CASES = [
    space(
        "an unknown field",
        "sweep.space.optimizer.learning_rte: is not a field of `optimizer`; did you mean `optimizer.learning_rate`?",
        optimizer__learning_rte=[1e-4, 1e-3],
    ),
    space(
        "a field in no section",
        "sweep.space.learning_rate: is not a field of the file; write `optimizer.learning_rate`",
        learning_rate=[1e-4],
    ),
    space("another tool's name", "sweep.space.lr: is a name from", lr=[1e-4]),
    space("an empty list", "sweep.space.lora.r: is empty; list at least one value", lora__r=[]),
    space("an empty choice", "sweep.space.lora.r.choice: is empty; list at least one value", lora__r={"choice": []}),
    space("the same value twice", "sweep.space.lora.r: has 8 twice; list each value once", lora__r=[8, 16, 8]),
    space(
        "low above high",
        "learning_rate.loguniform: low 0.001 is more than high 1e-05; turn them round: [1e-05, 0.001]",
        optimizer__learning_rate={"loguniform": [1e-3, 1e-5]},
    ),
    space(
        "low equal to high",
        "learning_rate.uniform: holds 0.001 alone; widen it, or write optimizer.learning_rate: 0.001 in the job",
        optimizer__learning_rate={"uniform": [1e-3, 1e-3]},
    ),
    space(
        "a whole range of one",
        "sweep.space.lora.r.randint: holds 8 alone",
        lora__r={"randint": [8, 9]},
    ),
    space(
        "log of zero",
        "weight_decay.loguniform: low is 0, and a number that is searched by its logarithm is above 0; raise low, or use "
        "uniform",
        optimizer__weight_decay={"loguniform": [0, 0.1]},
    ),
    space(
        "log of a negative number",
        "low is -1, and a number that is searched by its logarithm is above 0",
        optimizer__weight_decay={"loguniform": [-1, 0.1]},
    ),
    space("too few numbers", "uniform: is [0.1]; write [low, high], 2 numbers", optimizer__weight_decay={"uniform": [0.1]}),
    space(
        "no multiples of q",
        "quniform: low and high are not multiples of q, 0.04; choose bounds that are",
        optimizer__adam_beta1={"quniform": [0.8, 0.95, 0.04]},
    ),
    space(
        "a mistyped sort of values",
        "optimizer.learning_rate: `log_uniform` is no sort of values; did you mean `loguniform`?",
        optimizer__learning_rate={"log_uniform": [1e-5, 1e-3]},
    ),
    space(
        "two sorts of values",
        "optimizer.learning_rate: says uniform and choice; give one of choice, grid, uniform",
        optimizer__learning_rate={"uniform": [1e-5, 1e-3], "choice": [1e-4]},
    ),
    space("a number in two forms", "weight_decay: has 0.0 twice; list each value once", optimizer__weight_decay=[0, 0.0, 0.1]),
    case(
        "steps that Optuna has not",
        "sweep.space.lora.r: qloguniform: Optuna has no steps between logarithms, and would leave them out; use loguniform",
        search="optuna",
        space={"lora.r": {"qloguniform": [8, 64, 8]}},
    ),
    space("one value", "sweep.space.lora.r: is 8; write a list of values, or a range", lora__r=8),
    space(
        "more values than trials",
        "sweep.space.train.seed: lists 10,001 values, and a sweep has at most 10,000 trials; list fewer, or give a range",
        train__seed=list(range(10_001)),
    ),
    replace(
        space(
            "a thousand values refused",
            "sweep.space.lora.r: 992 other values of it cannot stand there either; change them too",
            lora__r=list(range(5000, 6000)),
        ),
        never=("lora.r[8]",),
    ),
    space("a value refused", "sweep.space.lora.r[1]: is 0; allowed: a whole number from 1 to 4096", lora__r=[8, 0]),
    space(
        "a name refused",
        "(did you mean `cosine`?)",
        optimizer__lr_scheduler_type=["cosin", "linear"],
    ),
    space(
        "the end of a range refused",
        "learning_rate.uniform[1]: is 20.0; allowed: a number above 0 below 10",
        optimizer__learning_rate={"uniform": [1e-3, 20]},
    ),
    space(
        "fractions of a whole number",
        "sweep.space.lora.r: uniform gives fractions; a whole number is asked; use randint",
        lora__r={"uniform": [8, 64]},
    ),
    space(
        "fractions of a whole number, by q",
        "sweep.space.lora.r: quniform gives fractions; a whole number is asked; make q, the third number, a whole one",
        lora__r={"quniform": [8, 64, 0.5]},
    ),
    replace(
        space("no number", "learning_rate[0]: is nan, which is no number", optimizer__learning_rate=[math.nan, 1e-3]),
        never=("allowed:",),
    ),
    space("a field inside its section", "name the field in one piece, lora.r: [...]", lora={"r": [8, 16]}),
    space(
        "parts of sections",
        "sweep.space.lora[0].alpha: is a name from Ludwig",
        lora=[{"alpha": 16}, {"r": 0}],
    ),
    space("a part of a section refused", "sweep.space.lora[1].r: is 0; allowed: a whole", lora=[{"r": 8}, {"r": 0}]),
    space("a field of the profile", "storage.runs: is not a field of the file; its fields are name", storage__runs=["a"]),
    space("other samples held out", "sweep.space.data: changes data.validation", data=[{"train": "rows.jsonl"}]),
    case(
        "a field of another method",
        "sweep.space.lora.r: changes nothing that is learnt",
        space={"lora.r": [8, 16], "train.seed": [1, 2]},
        job={"method": "full"},
    ),
    space("a field of the layout", "micro_batch_size: changes nothing that is learnt", train__micro_batch_size=[1, 2]),
    space("the name", "sweep.space.name: cannot be searched; take it out: it names runs", name=["a", "b"]),
    space("the validation", "data.validation: cannot be searched; take it out", data__validation=[0.1, 0.2]),
    space(
        "a section and its part",
        "lora.r: is part of lora, which is searched too; keep one of them",
        lora=[{"r": 8}, {"r": 16}],
        lora__r=[8, 16],
    ),
    case("no space", "sweep.space: is empty; name a field and its values: optimizer.learning_rate", space={}),
    case("a mistyped field of sweep", "sweep.trails: is not a field of `sweep`; did you mean `sweep.trials`?", trails=3),
    case("a list of fields", "sweep.space: is a list; name a field and its values", space=["lora.r"]),
    case("a number with an exponent", "(write 1000000, without point or exponent)", budget={"tokens": 1e6}),
    case("no such scheduler", "sweep.scheduler: is the text 'ashaa'", "(did you mean `asha`?)", scheduler="ashaa"),
    case("a metric that nobody knows", "sweep.metric: is the text 'accuracy'; allowed: ", metric="accuracy"),
    case(
        "a metric that is never reported",
        "sweep.metric: validation.loss is never reported: data.validation holds nothing out; set data.validation: 0.05, or "
        "sweep.metric: train.loss",
        job={"data": {}},
    ),
    case(
        "a metric that comes too late",
        "sweep.scheduler: asha stops trials by what they report, and validation.loss comes once, at the end of a trial; set "
        "train.eval_steps to 2, a quarter of its 8 steps",
        job={"train": {"num_train_epochs": 8, "max_steps": 8, "eval_steps": 8}},
        scheduler="asha",
    ),
    case(
        "a scheduler that stops nothing",
        "sweep.asha.grace_period: 1,000,000,000 tokens, and a trial has ",
        "use a share of a trial",
        scheduler="asha",
        asha={"grace_period": 1e9},
    ),
    case(
        "brackets that stop nothing",
        "sweep.asha.brackets: 3, and a later bracket than 2 would judge no trial before its end; use at most 2",
        scheduler="asha",
        asha={"grace_period": 0.25, "brackets": 3},
    ),
    case(
        "a grid that is too large",
        "sweep.space: the grid has 10,302 combinations, and a sweep at most 10,000 trials; list fewer values",
        search="grid",
        trials=None,
        space={"lora.r": list(range(1, 103)), "train.seed": list(range(101))},
    ),
    case(
        "a grid without end",
        "optimizer.learning_rate: loguniform has no end of values for search: grid",
        search="grid",
        trials=None,
    ),
    case(
        "fewer trials than the grid",
        "sweep.trials: 3, but the grid has 4 combinations; leave it out",
        search="grid",
        trials=3,
        space={"lora.r": [8, 16], "optimizer.learning_rate": [1e-4, 1e-3]},
    ),
    case("a grid at random", "lora.r: grid, and search is random; write choice", space={"lora.r": {"grid": [8, 16]}}),
    case(
        "pbt of what cannot change",
        "lora.r: cannot be searched by pbt, which changes a trial while it runs; search fields of optimizer alone",
        scheduler="pbt",
        space={"lora.r": [8, 16]},
    ),
    case("pbt and optuna", "sweep.search: optuna, and pbt changes the numbers", scheduler="pbt", search="optuna"),
    case(
        "more workers than there are",
        "sweep.workers: 4 for each trial, but the profile has 2; use at most 2, or raise workers in the profile",
        workers=4,
    ),
    replace(
        case(
            "more trials at once than there is room for",
            "sweep.max_concurrent: 3 trials of 1 worker at once, but the profile has 2 workers; use at most 2, or auto",
            max_concurrent=3,
        ),
        never=("or set sweep.workers",),
    ),
    case(
        "a cost without a price",
        "sweep.budget.cost: the profile does not say what a worker costs; add price_per_worker_hour to the profile",
        budget={"cost": 5},
    ),
    case("no Ray", "kind: inline is this process alone, and a sweep needs Ray; use --on local", on="here.yaml"),
    case(
        "a point that has no plan",
        "sweep.space: gives data.sequence_length=9999: data.sequence_length: 9999 is more than the model's "
        "max_position_embeddings, 512; use at most 512",
        space={"data.sequence_length": [96, 9999]},
    ),
    case(
        "a combination that has no plan",
        "sweep.space: gives deepspeed.offload=parameters deepspeed.stage=2: deepspeed.offload: parameters needs stage 3",
        space={"deepspeed.offload": ["none", "parameters"], "deepspeed.stage": [2, 3]},
    ),
    case(
        "many mistakes at once",
        "sweep.space.lora.r: is empty",
        "sweep.space.optimizer.lerning_rate: is not a field",
        "train.batch_sise: is not a field",
        "sweep.trials: is 0; allowed: a whole number from 1",
        job={"train": {"batch_sise": 4}},
        space={"lora.r": [], "optimizer.lerning_rate": [1e-4]},
        trials=0,
    ),
    case(
        "many reasons at once",
        "sweep.workers: 4 for each trial",
        "sweep.budget.cost: the profile does not say",
        "sweep.scheduler: asha stops trials by what they report",
        "sweep.space: gives data.sequence_length=9999",
        job={"train": {"num_train_epochs": 8, "max_steps": 8, "eval_steps": 8}},
        workers=4,
        budget={"cost": 5},
        scheduler="asha",
        space={"data.sequence_length": [96, 9999]},
    ),
    Case("a run of a sweep", ("has a `sweep` section: it is trained many times; use  shoal sweep job.yaml",),
         {**HELD_OUT, "sweep": SOUND}, command=("run", "job.yaml"), on=PROFILE),
    Case("a sweep of none", ("job.yaml: has no `sweep` section; add one",), command=("sweep", "job.yaml"), on=PROFILE),
    Case("no such job", ("jobb.yaml: there is no such job file; did you mean job.yaml?",), command=("sweep", "jobb.yaml")),
    Case("no profile", ("--on: names no file; give one: is a variable empty?",), command=("runs", "--on", ""), on=None),
    Case("no such sweep", ("nobody: there are no sweeps in",), command=("sweep", "show", "nobody"), on="none.yaml"),
    Case("the best of none", ("nobody: there are no sweeps in",), command=("sweep", "best", "nobody"), on="none.yaml"),
    Case("a page nowhere", ("--html: there is no folder nowhere",),
         command=("sweep", "show", "nobody", "--html", "nowhere/x.html"), on=PROFILE),
]  # fmt: skip

LEFT = [
    Case("a job file that somebody wrote", ("--job: job.yaml is there already, and no sweep wrote it",),
         command=("sweep", "best", "fish", "--job", "job.yaml"), on=PROFILE),
    Case("a folder as page", ("--html: sub cannot be written: is a directory",),
         command=("sweep", "show", "fish", "--html", "sub"), on=PROFILE),
    Case("a folder that is full", ("--export: sub-full is there and not empty",),
         command=("sweep", "best", "fish", "--job", "best.yaml", "--export", "sub-full"), on=PROFILE),
    Case("another sweep section", (f"--run-id {SWEEP_ID}: that sweep was begun with another `sweep` section; put these fields",
                                   "trials: 9 now, 8 then"),
         text=f"{JOB}sweep: {json.dumps({**sweep_plan().spec.model_dump(mode='json', exclude_unset=True), 'trials': 9})}\n",
         command=("sweep", "job.yaml", "--run-id", SWEEP_ID), on=PROFILE),
    Case("a run with a sweep's id", (f"--run-id {SWEEP_ID}: is a sweep, not a run; give the run another id",),
         command=("run", "job.yaml", "--run-id", SWEEP_ID)),
]  # fmt: skip


@pytest.mark.parametrize("mistake", LEFT, ids=str)
def test_what_cannot_be_done_with_a_sweep_is_told(mistake: Case, place: Path, tell: Callable[[Case], None]) -> None:
    if not (place / "runs" / SWEEP_ID).exists():
        write_sweep(place / "runs")
        (place / "sub-full").mkdir()
        (place / "sub-full" / "x").touch()
    tell(mistake)


def test_rows_that_an_earlier_preparation_rejected_are_told_before_anything_starts(
    place: Path, tell: Callable[[Case], None]
) -> None:
    """Whether a sequence length rejects too many is known where that length was prepared before, and there alone."""
    mistake = case(
        "rejected before",
        "sweep.space: gives data.sequence_length=48: data.train: 3 of 20 rows (15.0%) are rejected, data.max_rejected "
        "allows 1.0%; all are listed in {place}/prepared/",
        space={"data.sequence_length": [48, 96]},
    )
    write_job(place, mistake)
    short = apply(load_job(place / "job.yaml"), {"data.sequence_length": 48})
    url = plan_job(short, load_profile(place / PROFILE), Storage()).storage.prepared
    found = PreparedSummary(
        digest="d", format="messages", sequence_length=48, dtype="uint16", highest_token=1, rows=20, samples=17,
        validation_samples=0, tokens=100, validation_tokens=0, targets=50, validation_targets=0, packed_rows=4,
        rejected={"overlength": 3}, examples=(), units=(), columns=(),
    )  # fmt: skip
    Storage().write(f"{url}/meta.json", found.model_dump_json().encode())
    tell(mistake)


@pytest.fixture(autouse=True, scope="module")
def two_workers(place: Path) -> None:
    names = {name: str(place / name) for name in ("runs", "prepared", "cache")}
    (place / PROFILE).write_text(yaml.safe_dump({"kind": "local", "workers": 2, "storage": names}))


@pytest.mark.parametrize("mistake", CASES, ids=str)
def test_a_sweep_that_cannot_work_is_told_before_anything_starts(mistake: Case, tell: Callable[[Case], None]) -> None:
    loaded = set(sys.modules)
    tell(mistake)
    assert not {"ray", "torch"} & (set(sys.modules) - loaded)


def points(*values: Any) -> dict[str, Any]:
    return {"space": {"train.seed": list(values)}}


FORECASTS = [
    ({"scheduler": "asha"}, ("8, random search", "1 each, 2 at once", "prepared once", "8 a trial, 64 in all", "not known")),
    (points(1, 2, 3), ("sweep.trials: 8, more than the space has points (3): search: grid trains each once",)),
    ({"scheduler": "pbt", "trials": 1}, ("sweep.scheduler: pbt compares 2 trials or more: with 1 it stops none",)),
    ({"scheduler": "median", "trials": 3}, ("sweep.scheduler: median compares 4 trials or more",)),
    ({"budget": {"steps": 3}}, ("sweep.budget.steps: 3 is less than one trial takes (8)",)),
    ({"space": {"deepspeed.config.wall_clock_breakdown": [True, False]}, "trials": 2}, ("true or false",)),
    ({"space": {"data.train": ["rows.jsonl", {"path": "rows.jsonl", "weight": 2}]}, "trials": 2}, ("rows.jsonl or {path",)),
    ({**points(*range(20)), "search": "grid", "trials": None}, ("20, grid search", "10, 11 and 8 more", "8 a trial, 160 in")),
]  # fmt: skip


@pytest.mark.parametrize(("sweep", "says"), FORECASTS)
def test_a_sound_sweep_is_forecast(
    sweep: dict[str, Any],
    says: tuple[str, ...],
    place: Path,
    tell: Callable[[Case], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_job(place, Case("sound", (), {**HELD_OUT, "sweep": {**SOUND, **sweep}}))
    monkeypatch.setattr(sys, "argv", ["shoal", "sweep", "job.yaml", "--on", PROFILE, "--dry-run"])
    assert cli._status() == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in says:
        assert words in said
