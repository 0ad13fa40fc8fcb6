"""How a worker's heap behaves: glibc's settings for a process that asks for the same large blocks at every step."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Names and numbers of mallopt(3)."""


def keep_memory() -> None:
    """Has glibc hand out freed memory again rather than return it: page faults are 4% of a step on a CPU otherwise.

    One arena for all threads: what the threads that read ahead let go of is used again, where one arena for each keeps
    some 20 MB that nobody else can use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # other C libraries have none
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28), (M_ARENA_MAX, 1)):
        mallopt(option, value)
