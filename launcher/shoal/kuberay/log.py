"""The driver's words as the pod that submits shows them: each line once, whatever pod it comes from. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAYS_OWN = re.compile(
    r"\b(cli|dashboard_sdk|job_manager)\.py:\d+ -- |^Job submission server address|^-{5,}$|^Job '[^']+' (submitted|succeeded)"
    r"|^Next steps$|^  (Query the (logs|status) of the job|Request the job to be stopped):$|^    ray job (logs|status|stop) "
    r"|^Tailing logs until the job exits|^Status (for job|message)"
)
"""Lines of `ray job submit` and `ray job logs` themselves."""


@dataclass
class Transcript:
    """What was read of one driver so far."""

    pod: str = ""
    """The newest pod that was read."""
    since: str = ""
    """Time of its last line that was taken, as the kubelet writes it: as text, later is larger."""
    given: int = 0
    """Lines of the driver's that were handed on."""
    _skip: int = field(default=0, repr=False)

    def begin(self, pod: str) -> None:
        """Another pod shows the same driver's log, from its beginning."""
        if pod != self.pod:
            self.pod, self.since, self._skip = pod, "", self.given

    def take(self, text: str) -> Iterator[str]:
        """Lines of `text`, each with its time before it, that are new."""
        for line in text.splitlines():
            time, _, words = line.partition(" ")
            if time <= self.since:
                continue
            self.since = time
            words = ANSI.sub("", words)
            if RAYS_OWN.search(words):
                continue
            if self._skip:
                self._skip -= 1
                continue
            self.given += 1
            yield words
