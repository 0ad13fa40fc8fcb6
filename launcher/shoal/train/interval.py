"""How often to save: Young's first-order optimum. Pure arithmetic, in seconds."""

import math

FIRST_STEPS = 10
"""`checkpoint.every_steps: auto` saves first after so many steps, to measure what a save costs."""
UPLOAD_ROOM = 2.0
"""A save follows the one before after at least so many times its upload: the next one would only wait for it."""


def mean_time_between_failures(expected_s: float, trained_s: float, failures: int) -> float:
    """Seconds between failures: what was expected counts like one failure seen, and gives way to what is seen.

    The posterior mean of a Poisson process under a gamma prior of one failure in `expected_s`.
    """
    return (expected_s + trained_s) / (1 + failures)


def interval_seconds(stall_s: float, mean_time_between_failures_s: float, upload_s: float = 0.0) -> float:
    """Seconds of training between saves that lose least, to stalls and to steps repeated after failures together.

    sqrt(2 x cost of a save x mean time between failures): J. W. Young, "A first order approximation to the optimum
    checkpoint interval", CACM 17 (1974); J. T. Daly, FGCS 22 (2006). Never so short that uploads follow each other
    without a pause.
    """
    return max(math.sqrt(2 * stall_s * mean_time_between_failures_s), UPLOAD_ROOM * upload_s)


def interval_steps(step_s: float, stall_s: float, mean_time_between_failures_s: float, upload_s: float = 0.0) -> int:
    """The same in optimizer steps of `step_s` seconds each; at least 1."""
    return max(1, round(interval_seconds(stall_s, mean_time_between_failures_s, upload_s) / step_s))
