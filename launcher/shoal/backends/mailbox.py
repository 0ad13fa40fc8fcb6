"""How events travel from the workers to the driver of a Ray run, and directives back."""

from typing import Any

import ray

from shoal.train.world import Directive, Event


class Mailbox:
    """A named actor between rank 0 and the driver: events in, events out, and whether to stop.

    It outlives worker groups, so that a driver hears of the old group's last events and of the new group's first.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.directive = Directive.CONTINUE
        self.pids: dict[int, int] = {}

    def post(self, event: Event) -> Directive:
        """Keep one event for the driver; answers the current directive."""
        self.events.append(event)
        return self.directive

    def join(self, rank: int, size: int, pid: int) -> None:
        """A worker process is up; when all are, the driver hears their pids."""
        self.pids[rank] = pid
        if len(self.pids) == size:
            ids = ", ".join(str(self.pids[each]) for each in sorted(self.pids))
            message = f"{size} worker{'s' if size > 1 else ''} up (process {ids})"
            self.events.append({"kind": "note", "message": message, "pids": self.pids})
            self.pids = {}

    def drain(self, stop: bool) -> list[Event]:
        """The driver's call, a few times a second: takes all events, and says whether the run should stop."""
        if stop:
            self.directive = Directive.STOP
        events, self.events = self.events, []
        return events


class Reporter:
    """Rank 0's `report`: sends without waiting, and answers what the mailbox last said.

    A step never waits for the mailbox's process, so a directive may arrive one event late.
    """

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.sent: list[Any] = []
        self.directive = Directive.CONTINUE

    def __call__(self, event: Event) -> Directive:
        self.sent.append(self.mailbox.post.remote(event))
        answered, self.sent = ray.wait(self.sent, num_returns=len(self.sent), timeout=0)
        if answered:
            self.directive = ray.get(answered[-1])
        return self.directive

    def flush(self) -> None:
        """Wait until every event has arrived."""
        ray.get(self.sent)
