"""What is handed to a cluster and watched there: a run, or a sweep, and all that differs between the two."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from shoal.cli.common import console, storage_of
from shoal.cli.relay import board_of, outcome_of
from shoal.display import Display, display_for, tell_ending
from shoal.errors import SpecError, StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage
    from shoal.train.world import Event


@dataclass(frozen=True)
class Work:
    """One run or one sweep."""

    id: str
    is_sweep: bool
    options: str
    """What the next command about it needs too, such as ` --on PROFILE`."""
    as_json: bool
    """stdout is for a script."""

    @property
    def kind(self) -> str:
        return "sweep" if self.is_sweep else "run"

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return f"shoal {'sweep ' * self.is_sweep}resume {self.id}{self.options}"

    def display(self) -> Display:
        out = console(self.as_json)
        if not self.is_sweep:
            return display_for(out)
        from shoal.tune import live

        return live.display_for(out)

    def plan(self, job: "JobSpec | None", profile: "ClusterProfile", storage: "Storage", display: Display) -> bool:
        """Plan it as its driver will; whether the store is in sight, without which the driver finds most mistakes.

        Raises: ShoalError with everything that cannot work.
        """
        from shoal.launch import plan_job
        from shoal.tune.checks import place_problems
        from shoal.tune.forecast import forecast

        in_sight = _sees(storage, profile, display)
        if job is None:
            return in_sight
        if job.sweep is None:
            if in_sight:
                plan_job(job, profile, storage, self.id)
        elif in_sight:
            forecast(job.sweep, job, profile, storage)
        elif wrong := list(place_problems(job.sweep, profile)):
            raise SpecError(*wrong)
        return in_sight

    def tell(self, outcome: "Event", profile: "ClusterProfile") -> None:
        """How it ended, as its driver would have said it here."""
        if self.is_sweep:
            from shoal.cli.sweeping import tell_board

            tell_board(console(), board_of(outcome), outcome["state"] == "finished", self.options, self.as_json)
            return
        _tell_run(console(), outcome, profile, self.options, self.as_json)


def _sees(storage: "Storage", profile: "ClusterProfile", display: Display) -> bool:
    """Whether the store can be read from here; where only the cluster reaches it, the driver finds the mistakes."""
    from shoal.storage import join

    try:
        storage.exists(join(profile.storage.runs, ""))
    except StorageError as error:
        said = "; ".join(str(problem) for problem in error.problems)
        display.on_event({"kind": "note", "message": f"not planned here, the cluster does that: {said}"})
        return False
    return True


def _tell_run(out: "Console", outcome: "Event", profile: "ClusterProfile", options: str, as_json: bool) -> None:
    from shoal.plan.types import Plan
    from shoal.runs import RunFolder

    result, ledger = outcome_of(outcome)
    if as_json:
        body = {name: outcome[name] for name in ("run", "folder")}
        typer.echo(json.dumps({**body, **asdict(result), "ledger": outcome["ledger"]}, indent=1))
        return
    with storage_of(profile) as storage:
        try:
            plan = Plan.model_validate_json(storage.read(RunFolder(storage, outcome["folder"]).plan))
        except StorageError:
            loss = "" if result.loss is None else f", held-out loss {result.loss:.4f}"
            typer.echo(f"{outcome['run']}: {result.state} at step {result.step}{loss}; {outcome['folder']}")
            return
    tell_ending(out, plan, result, options, ledger)
