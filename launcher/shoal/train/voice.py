"""How a worker is heard, and how it hears."""

from shoal.train.journal import Journal
from shoal.train.world import Directive, Event, Report


class Voice:
    """Rank 0's events go to the journal and to whoever reports; the strongest answer is remembered until it is obeyed."""

    def __init__(self, report: Report, journal: Journal | None):
        self.wish = Directive.CONTINUE
        self._report, self._journal = report, journal

    def tell(self, event: Event, *, record: bool = True) -> None:
        """Every step is told, so that an answer is heard at once; `record` says whether it is also written down."""
        if self._journal is None:
            return
        if record:
            self._journal.record(event)
        answer = self._report(event)
        self.wish = Directive(max(self.wish.value, answer.value))

    def phase(self, phase: str, detail: str = "") -> None:
        self.tell({"kind": "phase", "phase": phase, "detail": detail})

    def resume(self, step: int) -> None:
        if self._journal is not None:
            self._journal.resume(step)

    def flush(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
