"""A mailbox for a group of workers that stays: plans go out to it, one after another."""

import math

from shoal.backends.causes import classify, failure_event
from shoal.backends.mailbox import Mailbox
from shoal.errors import ShoalError
from shoal.train.world import Directive, Event, Result


class Desk(Mailbox):
    """A mailbox whose group stays: it is given one plan after another, and every rank does each of them."""

    def __init__(self) -> None:
        super().__init__(hang_timeout_s=math.inf)
        self.turn = 0
        """The number of the newest plan."""
        self.plan: str | None = None
        """None while nothing is to be done."""
        self.done: dict[int, Result | ShoalError] = {}
        self.closed = False

    def give(self, plan: str, hang_timeout_s: float) -> None:
        """The next plan. What is still to be told of the one before is forgotten."""
        self.turn, self.plan, self.done = self.turn + 1, plan, {}
        self.events, self.failures, self.directive = [], [], Directive.CONTINUE
        self.hang_timeout_s = hang_timeout_s

    def save(self) -> None:
        """The run is asked for a checkpoint, once."""
        self.directive = max(self.directive, Directive.SAVE, key=lambda one: one.value)

    def post(self, event: Event) -> Directive:
        answer = super().post(event)
        if answer == Directive.SAVE:
            self.directive = Directive.CONTINUE
        return answer

    def take(self, after: int) -> tuple[int, str] | None:
        """A worker that has done turn `after` asks for more: (turn, plan), None for nothing yet, turn 0 for never."""
        if self.closed:
            return 0, ""
        return (self.turn, self.plan) if self.plan is not None and self.turn > after else None

    def join(self, rank: int, size: int, pid: int, node_id: str, actor_id: str) -> list[Event]:
        self.done.pop(rank, None)
        return super().join(rank, size, pid, node_id, actor_id)

    def finish(self, rank: int, outcome: Result | ShoalError) -> None:
        """One rank is through with the plan; when all are, it is done, or has failed in an orderly way."""
        self.done[rank] = outcome
        if len(self.done) == self.size:
            self.plan = None
            errors: dict[int, Exception] = {
                rank: one for rank, one in sorted(self.done.items()) if isinstance(one, ShoalError)
            }
            if errors:
                self.failed(failure_event(classify(errors, self.account()), None))

    def result(self) -> Result | ShoalError | None:
        """Rank 0's, or the first rank's that raised; once every rank is through."""
        if not self.turn or self.plan is not None:
            return None
        errors = [one for _, one in sorted(self.done.items()) if isinstance(one, ShoalError)]
        return errors[0] if errors else self.done[0]

    def on_turn(self) -> int | None:
        """The number of the plan that the group is at; None while it waits for one."""
        return None if self.plan is None else self.turn

    def close(self) -> None:
        """The group goes home when its plan is done."""
        self.closed = True
