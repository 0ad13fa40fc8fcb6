"""How often to save: Young's optimum, against the cost it is meant to make least."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.train.interval import UPLOAD_ROOM, interval_seconds, interval_steps, mean_time_between_failures

stalls = st.floats(0.001, 100)
failures = st.floats(600, 1e7)


def test_the_textbook_example():
    assert interval_seconds(stall_s=5, mean_time_between_failures_s=24 * 3600) == pytest.approx(929.5, abs=0.1)


def test_what_is_seen_of_failures_takes_the_place_of_what_was_expected():
    day = 24 * 3600.0
    assert mean_time_between_failures(day, 0, 0) == day
    assert mean_time_between_failures(day, 100 * day, 100) == pytest.approx(day)
    assert mean_time_between_failures(day, 10 * day, 99) == pytest.approx(0.11 * day)
    assert mean_time_between_failures(day, 9 * day, 0) == 10 * day


@given(stalls, failures, st.floats(0.2, 5))
def test_no_other_interval_loses_less(stall_s: float, failures_s: float, factor: float):
    """To first order: the share of time in stalls, and half an interval repeated per failure."""

    def lost(interval_s: float) -> float:
        return stall_s / interval_s + interval_s / 2 / failures_s

    best = interval_seconds(stall_s, failures_s)
    assert lost(best) <= lost(best * factor) * (1 + 1e-9)


@given(stalls, failures, st.floats(0.001, 1000))
def test_uploads_never_follow_each_other_without_a_pause(stall_s: float, failures_s: float, upload_s: float):
    found = interval_seconds(stall_s, failures_s, upload_s)
    assert found >= UPLOAD_ROOM * upload_s and found >= interval_seconds(stall_s, failures_s)


@given(st.floats(1e-4, 1e5), st.floats(0, 100), failures, st.floats(0, 1000))
def test_steps_are_whole_and_at_least_one(step_s: float, stall_s: float, failures_s: float, upload_s: float):
    steps = interval_steps(step_s, stall_s, failures_s, upload_s)
    assert steps >= 1
    assert math.isclose(steps * step_s, interval_seconds(stall_s, failures_s, upload_s), abs_tol=step_s)
