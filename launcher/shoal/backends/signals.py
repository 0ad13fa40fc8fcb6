"""A library's signal handlers are undone: what the process did about a signal before, it does again."""

import contextlib
import ctypes
import signal
from collections.abc import Iterator

ROOM = 256
"""Bytes for a `struct sigaction`, which takes 152 on Linux."""


@contextlib.contextmanager
def kept(*numbers: signal.Signals) -> Iterator[None]:
    """What the system does about these signals after the block is what it did before it; in any thread.

    Python's own `signal` answers the main thread alone, and knows nothing of handlers that C code installs.
    """
    sigaction = ctypes.CDLL(None).sigaction
    before = {number: ctypes.create_string_buffer(ROOM) for number in numbers}
    for number, action in before.items():
        sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in before.items():
            sigaction(int(number), action, None)
