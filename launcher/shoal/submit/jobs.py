"""What is asked of whoever runs the drivers of runs: a Ray dashboard, or the RayJobs of a Kubernetes namespace."""

from collections.abc import Iterator
from typing import Protocol

from shoal.submit.dashboard import Job


class Jobs(Protocol):
    """Jobs by their ids. All of it raises ClusterError, and Unanswered where nobody answers just now."""

    @property
    def address(self) -> str:
        """Where they are, in words."""
        ...

    def jobs(self) -> list[Job]:
        """All that are remembered, oldest first."""
        ...

    def job(self, id: str) -> Job | None: ...

    def stop(self, id: str) -> None:
        """SIGTERM to the driver, with some time to save."""
        ...

    def hold(self, id: str) -> None:
        """The driver was asked to leave: it shall not be started again because of that."""
        ...

    def log(self, id: str) -> str:
        """Everything that the driver has said so far, as far as it is kept."""
        ...

    def tail(self, id: str) -> Iterator[str]:
        """The driver's words from the first on, as they come, until the job has ended."""
        ...
