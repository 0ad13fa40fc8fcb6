"""How the trials of a sweep and its driver hear of each other: an actor on the driver's node."""

import time

from shoal.train.world import Event


class Post:
    """Trials put their events here, the driver takes them; the driver says once that all must leave."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.leaving = ""
        self.taken: dict[str, int] = {}
        """Data that a trial prepares just now, and which."""
        self.stepped = time.monotonic()
        """When a trial last took a step."""

    def tell(self, events: list[Event]) -> str:
        """What happened to one trial; answers why it must leave, if it must."""
        self.events += events
        if any(event["kind"] == "step" for event in events):
            self.stepped = time.monotonic()
        return self.leaving

    def still_s(self) -> float:
        """For how long no trial has taken a step."""
        return time.monotonic() - self.stepped

    def drain(self, leaving: str) -> list[Event]:
        """The driver's call: takes all events. `leaving`: why all trials must leave; stays once it was said."""
        self.leaving = self.leaving or leaving
        events, self.events = self.events, []
        return events

    def take(self, digest: str, trial: int) -> bool:
        """Whether this trial may prepare these data now: nobody else does. Asked again by whoever waits."""
        return self.taken.setdefault(digest, trial) == trial

    def give_back(self, trial: int) -> None:
        """This trial prepares nothing any more."""
        self.taken = {digest: holder for digest, holder in self.taken.items() if holder != trial}
