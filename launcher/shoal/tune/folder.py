"""The name of every file in a sweep's folder, and what they hold. The trials' own runs lie beside it."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import yaml

from shoal.errors import Problem, SpecError
from shoal.runs import GIVEN_ID, SWEEP_PLAN, TRIAL_ID, RunFolder, find_id, holding, list_runs, made_order, require_begun
from shoal.spec.base import Frozen, unreadable
from shoal.spec.job import JobSpec
from shoal.spec.sweep import SweepSpec
from shoal.storage import Storage, absolute, join

SWEEP_VERSION = 1


class SweepPlan(Frozen):
    """What a sweep was begun with."""

    version: int
    shoal: str
    """Version of Shoal that made it."""
    sweep_id: str
    made: str
    """UTC, ISO 8601."""
    spec: SweepSpec
    job: JobSpec
    """The job that each trial changes; without its `sweep`."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another trial that a trial begins with, under pbt."""

    run: str
    """Id of that trial's run."""
    step: int
    tokens: int
    """Seen until then."""


@dataclass(frozen=True)
class Trial:
    """One suggestion, written down before its trial begins."""

    number: int
    """From 1, in the order of the suggestions."""
    params: dict[str, Any]
    """Dotted job field -> value."""
    run: str
    """Id of the trial's run."""
    time: str
    """UTC, ISO 8601."""
    line: int | None = None
    """Under pbt, the suggestion whose place it has taken; None for a suggestion itself."""
    origin: Origin | None = None

    @classmethod
    def of(cls, body: dict[str, Any]) -> "Trial":
        origin = body.get("origin")
        return cls(**{**body, "origin": None if origin is None else Origin(**origin)})

    @property
    def place(self) -> int:
        """The suggestion that it stands for."""
        return self.line or self.number


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    number: int
    state: Literal["finished", "stopped", "failed"]
    why: str
    """In words: what stopped it, or why it failed; empty when it finished."""
    metric: float | None
    """Its last value."""
    best: float | None
    """Its best value after the first step."""
    step: int
    tokens: int
    seconds: float
    """From the trial's beginning to its end, all sittings together."""
    start_s: float | None
    """Of these, before its first step, in the first sitting."""
    retries: int
    """Times it was tried again with a smaller micro-batch."""


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep keeps what; every property is a url, and folders end in "/"."""

    storage: Storage
    url: str
    """The sweep's folder, without a slash at the end."""

    @classmethod
    def of(cls, storage: Storage, runs_url: str, sweep_id: str) -> "SweepFolder":
        return cls(storage, join(absolute(runs_url), sweep_id))

    @property
    def id(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def plan(self) -> str:
        """The SweepPlan: a sweep exists when this does."""
        return join(self.url, SWEEP_PLAN)

    @property
    def job(self) -> str:
        """The job file as it was submitted, overrides applied, its `sweep` there."""
        return join(self.url, "job.yaml")

    @property
    def trials(self) -> str:
        return join(self.url, "trials/")

    @property
    def baselines(self) -> str:
        """What trials find out before their first step, for others: `train/baseline.py`."""
        return join(self.url, "baselines/")

    @property
    def events(self) -> str:
        """One JSON line per thing that happened to the sweep."""
        return join(self.url, "events.jsonl")

    @property
    def report(self) -> str:
        return join(self.url, "report.html")

    @property
    def lease(self) -> RunFolder:
        """The folder as `lease.held` takes it: one driver per sweep."""
        return RunFolder(self.storage, self.url)

    def trial(self, number: int) -> str:
        return join(self.trials, f"{number:04d}.json")

    def end(self, number: int) -> str:
        return join(self.trials, f"{number:04d}.end.json")

    def run_id(self, number: int) -> str:
        """The id of a trial's run."""
        return f"{self.id}-{number:04d}"

    def run(self, number: int) -> RunFolder:
        """The trial's run folder, beside the sweep's."""
        return RunFolder(self.storage, join(self.url.rstrip("/").rpartition("/")[0], self.run_id(number)))

    def write_plan(self, plan: SweepPlan) -> None:
        """Write the plan, and the job file that it came from. Raises: FileExistsError when the sweep is there already."""
        body = plan.model_dump(mode="json", exclude_unset=True)  # what a job leaves out is the planner's to decide
        text = yaml.safe_dump(body["job"] | {"sweep": body["spec"]}, sort_keys=False, allow_unicode=True)
        self.storage.write(self.plan, json.dumps(body, indent=1).encode(), if_absent=True)
        self.storage.write(self.job, text.encode())

    def read_plan(self) -> SweepPlan:
        """Raises: SpecError when another version of Shoal wrote it."""
        return SweepPlan.read_back(self.storage.read(self.plan), self.plan)

    def write_trial(self, trial: Trial) -> None:
        """Write a suggestion down. Raises: FileExistsError when that number is taken."""
        self.storage.write(self.trial(trial.number), _line(trial), if_absent=True)

    def write_end(self, end: TrialEnd) -> None:
        self.storage.write(self.end(end.number), _line(end))

    def read_trials(self) -> list[tuple[Trial, TrialEnd | None]]:
        """Every suggestion with its end, in the order of their numbers; a number may be missing.

        Raises: SpecError when another version of Shoal wrote them.
        """
        ends: dict[int, TrialEnd] = {}
        begun: list[Trial] = []
        for one in self.storage.list(self.trials):
            text = self.storage.read(one.url)
            try:
                body = json.loads(text)
                if one.url.endswith(".end.json"):
                    ends[body["number"]] = TrialEnd(**body)
                else:
                    begun.append(Trial.of(body))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise SpecError(unreadable(text, one.url)) from None
        return [(trial, ends.get(trial.number)) for trial in sorted(begun, key=lambda one: one.number)]


def list_sweeps(storage: Storage, runs_url: str) -> list[SweepFolder]:
    """The sweeps, oldest first; those whose id says no time come before all."""
    sweeps = [SweepFolder(storage, url) for url in holding(storage, runs_url, SWEEP_PLAN)]
    return sorted((one for one in sweeps if GIVEN_ID.fullmatch(one.id)), key=lambda one: made_order(one.id))


def find_sweep(storage: Storage, runs_url: str, beginning: str) -> SweepFolder:
    """The one sweep whose id begins so, or is just so. Raises: SpecError with the candidates, or the nearest ids."""
    sweeps = {one.id: one for one in list_sweeps(storage, runs_url)}
    if beginning.strip() and not any(one.startswith(beginning) for one in sweeps):
        for run in list_runs(storage, runs_url):
            if run.id.startswith(beginning):
                trial = TRIAL_ID.fullmatch(run.id)
                fix = f"its sweep is {trial['sweep']}" if trial else f"`shoal report {run.id}` shows it"
                raise SpecError(Problem(run.id, f"is a {'trial' if trial else 'run'}, not a sweep", fix))
        require_begun(storage, runs_url, beginning)
    return sweeps[find_id(list(sweeps), beginning, runs_url, "sweep", "start one with `shoal sweep JOB`")]


def _line(record: Trial | TrialEnd) -> bytes:
    return (json.dumps(asdict(record)) + "\n").encode()
