"""Everything Shoal raises on purpose: one root, a handful of leaves, all picklable.

A `ShoalError` is an answer to a person: the command line prints its message without a stack trace and exits with
its `exit_status`. Anything else that reaches the command line is a bug of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what was found there, and what to change."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")


class ShoalError(Exception):
    """Root of all answers. Built from problems, or from one sentence, so that pickling keeps everything."""

    exit_status = 1

    def __init__(self, *problems: Problem | str):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def together(errors: Sequence[ShoalError]) -> ShoalError:
    """One error with the problems of all, each once: of their class, or of the one with the lowest exit status."""
    if len(errors) == 1:
        return errors[0]
    kind = min((type(error) for error in errors), key=lambda one: one.exit_status)
    return kind(*dict.fromkeys(problem for error in errors for problem in error.problems))


class SpecError(ShoalError, ValueError):
    """The job file, the profile or the command line says something impossible."""

    exit_status = 2


class DataError(ShoalError, ValueError):
    """The data cannot be trained on as it is: missing, empty, or too many rows rejected."""

    exit_status = 3


class ModelError(ShoalError, ValueError):
    """The base model, its tokenizer or its adapter cannot be had or cannot do what the job asks."""

    exit_status = 3


class StorageError(ShoalError, OSError):
    """The object store or the disk refused: wrong key, missing bucket or object, unreachable, full."""

    exit_status = 4


class Forbidden(StorageError):
    """A file or a folder is somebody else's, and not to be read or written by this user."""


class ClusterError(ShoalError):
    """The place to run cannot give what the plan needs."""

    exit_status = 5


class SelfCheckError(ShoalError):
    """The check before step 1 found that training this model would silently go wrong."""

    exit_status = 6


class ExportError(ShoalError):
    """What was exported is not what was trained."""

    exit_status = 7


class TrainingError(ShoalError):
    """Training itself failed: a loss that is not a number, a worker that died too often."""

    exit_status = 8
