"""A group that is about to have another size saves and leaves first, so that no step is repeated. Runs in Ray's controller."""

import contextlib
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState, TrainControllerState
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

ASK_S = 5.0
LEAVE_S = 120.0
"""A group that is not done saving by then is ended as it is: what it did since its last checkpoint is repeated."""
POLL_S = 0.2


class Resizes(ControllerCallback):
    """Ray Train ends a running group when there is room for a larger one; this is the moment before."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        if not isinstance(current_state, ResizingState):
            return
        decision = current_state.scaling_decision
        assert isinstance(decision, ResizeDecision)
        with contextlib.suppress(RayError, GetTimeoutError):  # then it is ended as it is
            self._leave(decision.num_workers)

    def _leave(self, workers: int) -> None:
        ray.get(self.mailbox.resize.remote(workers), timeout=ASK_S)
        deadline = time.monotonic() + LEAVE_S
        while not ray.get(self.mailbox.is_left.remote(), timeout=ASK_S) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        ray.get(self.mailbox.resized.remote(), timeout=ASK_S)
