"""The winner of a sweep: its job as a file that runs alone, and its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shoal.errors import Problem, SpecError
from shoal.record.ending import read_result
from shoal.spec.job import JobSpec
from shoal.spec.load import parse_job
from shoal.storage import Storage, join
from shoal.tune.board import Board, Standing, board
from shoal.tune.folder import SweepFolder
from shoal.tune.space import apply, said

HEADING = "# Trial "
"""How a job file that a sweep wrote begins."""
ORIGIN = "It began with the weights of {origin}: its job alone starts from the base, and will not give the same."


@dataclass(frozen=True)
class Best:
    """The best trial."""

    sweep: str
    trial: int
    run: str
    state: str
    params: dict[str, Any]
    metric: str
    value: float
    export: str | None
    """Where its model lies; None where there is none."""
    origin: str
    """Under pbt, whose weights it began with; empty where its job alone says it all."""
    text: str
    """Its job file."""

    @property
    def lack(self) -> str:
        """Why there is no model."""
        return "its run folder holds none any more" if self.state == "finished" else "it did not finish"

    @property
    def words(self) -> str:
        done = "" if self.state == "finished" else f" ({self.state}: no trial of this sweep has finished)"
        words = f"trial {self.trial}{done}: {self.metric} {self.value:.4f} with {said(self.params)}"
        return words + (f"\n{ORIGIN.format(origin=self.origin)}" if self.origin else "")

    def as_json(self) -> dict[str, Any]:
        names = ("sweep", "trial", "run", "state", "params", "metric", "value", "export", "origin")
        return {name: getattr(self, name) for name in names}


def winning(folder: SweepFolder) -> Best:
    """The best trial that finished, or the best of all when none has. Raises: SpecError when none has a value."""
    found = board(folder)
    row = found.winner or next((one for one in found.ranked if found.score(one) is not None), None)
    if row is None:
        fix = f"go on with it: shoal sweep resume {folder.id}"
        raise SpecError(Problem(folder.id, f"no trial has a {found.metric} yet", fix))
    value = found.score(row)
    assert value is not None
    return Best(
        sweep=folder.id,
        trial=row.number,
        run=row.run,
        state=row.state,
        params=row.params,
        metric=found.metric,
        value=value,
        export=_export(folder, row),
        origin=row.origin,
        text=job_text(trained(folder, row), found, row, value),
    )


def trained(folder: SweepFolder, row: Standing) -> JobSpec:
    """The job that the trial's run was made from; before there is one, the sweep's with the params in place."""
    run = folder.run(row.number)
    if folder.storage.exists(run.job):
        return parse_job(folder.storage.read(run.job), run.job)
    return apply(folder.read_plan().job, row.params)


def job_text(job: JobSpec, found: Board, row: Standing, value: float) -> str:
    """YAML of a job, with what it is above it."""
    body = job.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    done = (
        f"gave {found.metric} {value:.6f}" if row.state == "finished" else f"{row.state} at {found.metric} {value:.6f}"
    )
    head = f"{HEADING}{row.number} of the sweep {found.sweep}: {done}.\n# Searched: {_one_line(said(row.params))}\n"
    head += f"# {ORIGIN.format(origin=row.origin)}\n" if row.origin else ""
    return head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


def _one_line(text: str) -> str:
    """A comment ends with its line."""
    return " ".join(text.split())


def _export(folder: SweepFolder, row: Standing) -> str | None:
    run = folder.run(row.number)
    if not folder.storage.exists(run.result):
        return None
    export = read_result(run)["export"]
    return export if export and folder.storage.list(join(export, "")) else None


def copy_export(best: Best, storage: Storage, path: Path) -> Path:
    """The winner's export as files in the folder `path`. Raises: SpecError when there is none, or the folder is not empty."""
    if best.export is None:
        fix = "train it with its job file: shoal run"
        raise SpecError(Problem("--export", f"trial {best.trial} has no model: {best.lack}", fix))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SpecError(Problem("--export", f"{path} is there and not empty", "name a folder that is not there yet"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{path} cannot be made: {(error.strerror or str(error)).lower()}"
        raise SpecError(Problem("--export", what, "name another folder")) from None
    storage.download(best.export.rstrip("/") + "/", path)
    return path
