"""The inline backend: this process, a world of one, no Ray."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from shoal.backends import Answer, Done, OnEvent, Task
from shoal.plan.types import Plan
from shoal.train.world import Directive, Event, Result, World

if TYPE_CHECKING:
    from shoal.data.prepare import PreparedSummary
    from shoal.storage import Storage

QUIET = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def quiet() -> None:
    """Before the libraries are imported: of what they say in the process that a person watches, only errors matter."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Inline:
    """Runs the worker where the command runs: for tests, debuggers and one small device."""

    def start(self) -> None:
        quiet()

    def prepare(self, plan: Plan, storage: "Storage", on_event: OnEvent) -> "PreparedSummary":
        from shoal.data.prepare import prepare

        return prepare(plan, storage, report=on_event)

    def map(self, work: Callable[[Task], Iterator[Done]], todo: Iterable[Task]) -> Iterator[Done]:
        return chain.from_iterable(map(work, todo))

    def everywhere(self, work: Callable[[int, int], Done], gpus: int = 0) -> list[Answer[Done]]:
        return [Answer("", "", work(0, 1), "", time.time())]

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        if plan.layout.device == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from shoal.train import entry

        def report(event: Event) -> Directive:
            on_event(event)
            return Directive.STOP if stop.is_set() else Directive.CONTINUE

        return entry.run(plan, World(), report)

    def close(self) -> None:
        pass
