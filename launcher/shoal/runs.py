"""Names every file of a run folder, and finds runs by the beginning of their id."""

import json
import re
import secrets
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from shoal.errors import Forbidden, Problem, ShoalError, SpecError, StorageError
from shoal.storage import Storage, join

RUN_ID = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)-(?P<made>\d{8}-\d{6})-(?P<token>[0-9a-z]{4})")
GIVEN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""An id that somebody chose."""
TRIAL_ID = re.compile(rf"(?P<sweep>{GIVEN_ID.pattern})-(?P<number>\d{{4,5}})")
"""The id of a sweep's trial, which is a run: the sweep's own and the trial's number."""
PLAN, SWEEP_PLAN, SUBMISSION = "plan.json", "sweep.json", "submission.json"
"""What makes a folder a run, or a sweep, and what is there before either when it was handed to a cluster."""
GAVE_UP = "gave_up"
"""In a submission: why its driver left before there was a plan."""
SHOWN = 8
"""Runs listed when a beginning fits several, or none."""


def new_run_id(name: str, now: datetime, token: str) -> str:
    """NAME-YYYYMMDD-HHMMSS-xxxx; `token` is four lower-case letters or digits that tell runs of one second apart."""
    run_id = f"{name}-{now:%Y%m%d-%H%M%S}-{token}"
    assert RUN_ID.fullmatch(run_id), run_id
    return run_id


def new_id(name: str) -> str:
    """Of a run or a sweep of that name that is made now."""
    return new_run_id(name, datetime.now(), secrets.token_hex(2))


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what; every property is a url, and folders end in "/"."""

    storage: Storage
    url: str
    """The run's folder, without a slash at the end."""

    @property
    def id(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def plan(self) -> str:
        """The Plan, as it was before the first step."""
        return join(self.url, PLAN)

    @property
    def submission(self) -> str:
        """Who drives a run that was handed to a cluster: there before the plan is."""
        return join(self.url, SUBMISSION)

    @property
    def job(self) -> str:
        """The job file as it was submitted, overrides applied."""
        return join(self.url, "job.yaml")

    @property
    def metrics(self) -> str:
        """One JSON line per logged step and evaluation."""
        return join(self.url, "metrics.jsonl")

    @property
    def events(self) -> str:
        """One JSON line per thing that happened."""
        return join(self.url, "events.jsonl")

    @property
    def result(self) -> str:
        """How it ended."""
        return join(self.url, "result.json")

    @property
    def ledger(self) -> str:
        """What its wall time went to, as of the last end; not there while a driver works."""
        return join(self.url, "ledger.json")

    @property
    def report(self) -> str:
        return join(self.url, "report.html")

    @property
    def tensorboard(self) -> str:
        return join(self.url, "tensorboard/")

    @property
    def checkpoints(self) -> str:
        return join(self.url, "checkpoints/")

    def checkpoint(self, step: int) -> str:
        """The folder of one checkpoint. Eight digits, so that the order of names is the order of steps."""
        return join(self.checkpoints, f"{step:08d}/")

    def manifest(self, step: int) -> str:
        """Written last: a checkpoint exists when this does."""
        return join(self.checkpoint(step), "manifest.json")

    def replay(self, step: int) -> str:
        """The global batch of a step whose loss or gradient was no number."""
        return join(self.url, "replay", f"{step:08d}.json")

    @property
    def exports(self) -> str:
        return join(self.url, "export/")

    def export(self, name: str) -> str:
        """The folder of one export, such as `adapter`, `model` or `merged`."""
        return join(self.exports, f"{name}/")


def holding(storage: Storage, runs_url: str, name: str) -> list[str]:
    """The folders below `runs_url` that hold such a file, sorted, without a slash at the end.

    In a place that several people share, those that others may not look into are left out.
    """
    try:
        found = storage.list(join(runs_url, "*", name))
    except Forbidden:
        return [one.rstrip("/") for one in storage.folders(runs_url) if _is_seen(storage, join(one, name))]
    return [one.url.removesuffix(f"/{name}") for one in found]


def _is_seen(storage: Storage, url: str) -> bool:
    try:
        return storage.exists(url)
    except Forbidden:
        return False


def list_runs(storage: Storage, runs_url: str) -> list[RunFolder]:
    """The runs that have a plan, oldest first; those whose id says no time come before all."""
    runs = [RunFolder(storage, url) for url in holding(storage, runs_url, PLAN)]
    return sorted((run for run in runs if names_run(run.id)), key=lambda run: made_order(run.id))


@contextmanager
def giving_up(folder: RunFolder) -> Iterator[None]:
    """What is raised inside ends a driver before it has a plan: of a run that was handed to a cluster it is written down."""
    try:
        yield
    except StorageError:
        raise  # nothing can be written down either
    except ShoalError as error:
        with suppress(StorageError):
            if folder.storage.exists(folder.submission):
                body = json.loads(folder.storage.read(folder.submission))
                said = json.dumps({**body, GAVE_UP: str(error)}, indent=1)
                folder.storage.write(folder.submission, said.encode())
        raise


def gave_up(folder: RunFolder) -> str:
    """Why the driver of a run left before there was a plan; empty where it did not, as far as the folder says."""
    try:
        return str(json.loads(folder.storage.read(folder.submission)).get(GAVE_UP, ""))
    except (ValueError, AttributeError, Forbidden):
        return ""


def require_begun(storage: Storage, runs_url: str, beginning: str) -> None:
    """SpecError for the beginning of an id of what was handed to a cluster and has no plan, with what became of it."""
    for url in holding(storage, runs_url, SUBMISSION):
        folder = RunFolder(storage, url)
        if not beginning.strip() or not folder.id.startswith(beginning):
            continue
        if why := gave_up(folder):
            fix = f"use its job file again, with --run-id {folder.id}"
            raise SpecError(Problem(folder.id, f"its driver gave up before it had a plan: {why}", fix))
        fix = f"`shoal logs {folder.id} --follow` shows what its driver says"
        raise SpecError(Problem(folder.id, "has no plan yet", fix))


def checked_id(given: str) -> str:
    """An id that may name a run. Raises: SpecError."""
    if not names_run(given):
        fix = "use lower-case letters, digits and dashes, at most 63, a letter or a digit first"
        raise SpecError(Problem("--run-id", f"{given!r} cannot name a run", fix))
    return given


def names_run(name: str) -> bool:
    """Whether a folder of that name may be a run's or a sweep's."""
    return bool(GIVEN_ID.fullmatch(name) or TRIAL_ID.fullmatch(name))


def find_run(storage: Storage, runs_url: str, beginning: str) -> RunFolder:
    """The one run whose id begins so, or is just so; SpecError lists the candidates, or the nearest ids."""
    sweeps = {url.rpartition("/")[2] for url in holding(storage, runs_url, SWEEP_PLAN)}
    runs = {run.id: run for run in list_runs(storage, runs_url) if not is_behind(run.id, beginning, sweeps)}
    meant = sorted(one for one in sweeps if beginning.strip() and one.startswith(beginning))
    if meant and not any(one.startswith(beginning) for one in runs):
        fix = f"its trials are runs: `shoal sweep show {meant[0]}` lists them"
        raise SpecError(Problem(meant[0], "is a sweep, not a run", fix))
    if not any(one.startswith(beginning) for one in runs):
        require_begun(storage, runs_url, beginning)
    return runs[find_id(list(runs), beginning, runs_url, "run", "start one with `shoal run JOB`")]


def is_behind(run_id: str, beginning: str, sweeps: Set[str]) -> bool:
    """Whether it is a trial of a sweep whose id begins so too: the sweep is meant."""
    trial = TRIAL_ID.fullmatch(run_id)
    return trial is not None and trial["sweep"] in sweeps and trial["sweep"].startswith(beginning)


def find_id(ids: list[str], beginning: str, where: str, kind: str, start: str) -> str:
    """The one of `ids` (oldest first) that begins so, or is just so. `kind` and `start` are words for messages.

    Raises: SpecError with the candidates, or the nearest ids.
    """
    if not beginning.strip():
        fix = f"give the beginning of a {kind}'s id; `shoal runs` lists them"
        raise SpecError(Problem(kind, f"no {kind} was named", fix))
    if beginning in ids:
        return beginning
    fitting = [one for one in ids if one.startswith(beginning)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SpecError(Problem(beginning, f"{len(fitting)} {kind}s begin so", f"name one of {_shown(fitting)}"))
    if not ids:
        raise SpecError(Problem(beginning, f"there are no {kind}s in {where}", start))
    # Compared over the length that was typed, so that a mistyped beginning still finds its run.
    beginnings = {one[: len(beginning)]: one for one in ids}
    near = [beginnings[one] for one in get_close_matches(beginning, beginnings, n=SHOWN, cutoff=0.7)]
    fix = f"did you mean {_shown(near)}?" if near else f"the newest are {_shown(ids)}"
    raise SpecError(Problem(beginning, f"no {kind} in {where} begins so", fix))


def made_order(run_id: str) -> tuple[str, str]:
    """To sort ids by: the time that an id says (none comes first), then the id."""
    trial = TRIAL_ID.fullmatch(run_id)
    match = RUN_ID.fullmatch(trial["sweep"] if trial else run_id) or RUN_ID.fullmatch(run_id)
    return match["made"] if match else "", run_id


def _shown(run_ids: list[str]) -> str:
    more = len(run_ids) - SHOWN
    return ", ".join(run_ids[-SHOWN:]) + (f" ({more} older ones)" if more > 0 else "")
