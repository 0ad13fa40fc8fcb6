"""What a store does wrong on the way: told each time, and tried again for as long as that makes sense."""

import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

PATIENCE_S = 60.0
"""An operation is begun anew for so long after its first attempt; a store that restarts is back within it."""
STRANGER_ATTEMPTS = 3
"""Where nothing listens and nothing ever has, the endpoint is probably wrong: it is given up after so many."""
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 8.0
SLOW_S = 5.0
SLOW_BYTES_PER_S = 1 << 20
"""A request is slow when it took SLOW_S more than its bytes take at this rate."""


@dataclass(frozen=True)
class Fault:
    """One request that failed, was cut short, or took long."""

    url: str
    operation: str
    """get, head, list, put, upload, delete."""
    what: str
    """In words, with the store's own code where it gave one."""
    attempt: int
    """Counts from 1 within one operation."""
    wait_s: float
    """Seconds until the next attempt; 0 when there is none: it was given up, or was only slow."""


@dataclass(frozen=True)
class Passing:
    """A failure that may pass."""

    what: str
    """In a few words."""
    nobody: bool = False
    """Nothing listened there."""


class Truncated(Exception):
    """A body that is not as long as what was asked for."""

    def __init__(self, got: int, wanted: int):
        super().__init__(got, wanted)
        self.got, self.wanted = got, wanted

    def __str__(self) -> str:
        return f"cut short: {self.got} of {self.wanted} bytes came"


class Retries:
    """Runs requests again while their failures may pass: exponential waits with full jitter, bounded in time.

    `passing(error)` is None for a failure that stays.
    """

    def __init__(self, passing: Callable[[BaseException], Passing | None], on_fault: Callable[[Fault], None] | None):
        self._passing, self._on_fault = passing, on_fault
        self._one_at_a_time = threading.Lock()
        self._patience_s: float | None = None
        """PATIENCE_S unless asked for more."""
        self._known = False
        """Whether the store has ever done what it was asked."""

    def patient(self, seconds: float) -> "Retries":
        """The same, beginning anew for so long; a store that has ever answered stays known."""
        other = copy(self)
        other._patience_s = seconds
        return other

    def tell(self, fault: Fault) -> None:
        """May be called from any thread; `on_fault` hears one fault at a time."""
        if self._on_fault is not None:
            with self._one_at_a_time:
                self._on_fault(fault)

    def run(self, url: str, operation: str, call: Callable[[], T], size: int = 0) -> T:
        """`call()`, begun anew on each passing failure; `size`: the bytes it moves. Raises what its last attempt raised."""
        # Loaded here: what never touches a store starts without it.
        from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

        def told(state: "RetryCallState", wait_s: float) -> None:
            found = self._passed(state)
            assert found is not None
            self.tell(Fault(url, operation, found.what, state.attempt_number, round(wait_s, 3)))

        def given_up(state: "RetryCallState") -> Any:
            told(state, 0.0)
            assert state.outcome is not None
            return state.outcome.result()

        patience = stop_before_delay(self._patience_s or PATIENCE_S)
        retrying = Retrying(
            retry=retry_if_exception(lambda error: self._passing(error) is not None),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            stop=lambda state: self._is_stranger(state) or patience(state),
            before_sleep=lambda state: told(state, state.upcoming_sleep),
            retry_error_callback=given_up,
        )
        return retrying(self._watched, retrying, url, operation, call, size)

    def _watched(self, retrying: Any, url: str, operation: str, call: Callable[[], T], size: int) -> T:
        began = time.monotonic()
        found = call()
        self._known = True
        took = time.monotonic() - began
        if took > SLOW_S + size / SLOW_BYTES_PER_S:
            attempt = retrying.statistics.get("attempt_number", 1)
            self.tell(Fault(url, operation, f"slow: {took:.1f} s for {size} bytes", attempt, 0.0))
        return found

    def _passed(self, state: "RetryCallState") -> Passing | None:
        error = state.outcome.exception() if state.outcome else None
        return self._passing(error) if error else None

    def _is_stranger(self, state: "RetryCallState") -> bool:
        found = self._passed(state)
        return not self._known and found is not None and found.nobody and state.attempt_number >= STRANGER_ATTEMPTS
