"""How a worker is heard, and how it hears."""

from collections import deque
from dataclasses import asdict

from shoal.storage import Fault
from shoal.train.journal import Journal
from shoal.train.world import Directive, Event, Pulse, Report

SUMMED = ("seconds", "data_seconds")
"""Of steps that are not written down, these live on in the row of the next that is."""


class Voice:
    """Rank 0's events go to the journal and to whoever reports; the strongest answer is remembered until it is obeyed."""

    def __init__(self, report: Report, journal: Journal | None, pulse: Pulse):
        self.pulse = pulse
        self.wish = Directive.CONTINUE
        self._report, self._journal = report, journal
        self._faults: deque[Event] = deque()
        self._unwritten: list[Event] = []

    def tell(self, event: Event, *, record: bool = True) -> None:
        """Every step is told, so that an answer is heard at once; `record` says whether it is also written down.

        The last step before anything else is written in any case: what a save, a failure or a stop divides is whole.
        """
        if event["kind"] == "phase":
            self.pulse.mark(event["phase"])
        if self._journal is None:
            return
        if not record:
            self._unwritten.append(event)
        elif event["kind"] == "step":
            self._write([*self._unwritten, event])
        else:
            self._write(self._unwritten)
            self._journal.record(event)
        answer = self._report(event)
        self.wish = Directive(max(self.wish.value, answer.value))

    def _write(self, steps: list[Event]) -> None:
        """The last of these steps; of several, `covers` has their sums."""
        self._unwritten = []
        if self._journal is not None and steps:
            sums = {name: sum(step.get(name, 0.0) for step in steps) for name in SUMMED}
            covers = {"covers": {"steps": len(steps), **sums}} if len(steps) > 1 else {}
            self._journal.record(steps[-1] | covers)

    def fault(self, fault: Fault) -> None:
        """Keeps what the store did wrong until the training thread takes it; any thread of any rank may call this."""
        self._faults.append({"kind": "storage", **asdict(fault)})

    @property
    def waiting(self) -> int:
        """Faults that nobody has taken."""
        return len(self._faults)

    def faults(self) -> list[Event]:
        """The faults since the last call."""
        return [self._faults.popleft() for _ in range(len(self._faults))]

    def phase(self, phase: str, detail: str = "") -> None:
        self.tell({"kind": "phase", "phase": phase, "detail": detail})

    def resume(self, step: int) -> None:
        if self._journal is not None:
            self._journal.resume(step)

    def failed_attempts(self) -> int:
        """Earlier attempts at this run that failed; 0 on other ranks than 0."""
        return self._journal.failed_attempts() if self._journal is not None else 0

    def flush(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    def close(self) -> None:
        for event in self.faults():
            self.tell(event)
        self._write(self._unwritten)
        if self._journal is not None:
            self._journal.close()
