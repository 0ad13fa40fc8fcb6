"""What a person sees: the state behind the panel, plain lines, the end of a run."""

import io
from pathlib import Path
from typing import Any

import pytest
from plans import small_plan
from rich.console import Console

from shoal.display import RunLines, Screen, State, display_for, duration, gate_words, panel, size, tell_ending
from shoal.train.world import Result


def console(width: int = 100, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False, color_system=None)


def written(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def step(number: int, **other: Any) -> dict[str, Any]:
    event = {"kind": "step", "step": number, "steps": 10, "loss": 2.0, "learning_rate": 1e-4}
    return event | {"tokens_per_s": 1000.0, "seconds": 2.0} | other


def result(**changes: Any) -> Result:
    body: dict[str, Any] = {
        "state": "finished",
        "step": 10,
        "steps": 10,
        "tokens": 12345,
        "seconds": 100.0,
        "base_loss": 3.0,
        "loss": 2.0,
        "train_loss": 1.9,
        "export": "s3://shoal/runs/r/export/adapter",
        "gate": {"passed": True, "max_relative_difference": 1.5e-6, "tolerance": 1e-4, "against": "live model"},
        "answers": [{"prompt": "Who? [/bold]", "before": "I do\nnot know.", "after": "A fish."}],
    }
    return Result(**(body | changes))


def test_state_tells_the_remaining_time_from_the_steps_so_far() -> None:
    state = State()
    assert state.eta is None
    state.see(step(1))
    assert state.eta == pytest.approx(18.0)
    state.see(step(2, seconds=7.0))
    assert state.eta == pytest.approx(8 * 3.0)
    state.see(step(10))
    assert state.eta == 0


def test_a_step_without_a_target_keeps_the_last_loss() -> None:
    state = State()
    state.see(step(1, loss=1.5))
    state.see(step(2, loss=None))
    assert (state.step, state.loss) == (2, 1.5)


def test_lines_are_plain_and_steps_are_thinned() -> None:
    out, now = console(), [0.0]
    lines = RunLines(out, clock=lambda: now[0])
    for number in range(1, 11):
        lines.on_event(step(number))
        now[0] += 0.5
    text = written(out)
    told = [line.split()[2] for line in text.splitlines()]
    assert told == ["1/10", "5/10", "9/10", "10/10"]
    assert "\r" not in text
    assert "\x1b" not in text
    assert "loss 2.0000  lr 1.00e-04  1,000 tokens/s  18 s left" in text


def test_lines_tell_a_phase_that_returns_once() -> None:
    out = console()
    lines = RunLines(out, clock=lambda: 0.0)
    for _ in range(3):
        lines.on_event({"kind": "phase", "phase": "training", "detail": "10 steps"})
        lines.on_event({"kind": "phase", "phase": "evaluating", "detail": ""})
    assert [line[9:] for line in written(out).splitlines()] == ["training: 10 steps", "evaluating"]


def test_lines_tell_how_a_long_phase_goes_on() -> None:
    out, now = console(), [0.0]
    lines = RunLines(out, clock=lambda: now[0])
    for rows in (0, 100, 200, 300):
        lines.on_event({"kind": "phase", "phase": "preparing", "detail": f"{rows} rows"})
        now[0] += 1.5
    assert [line[9:] for line in written(out).splitlines()] == [f"preparing: {rows} rows" for rows in (0, 100, 300)]


def test_notes_and_figures_are_told_word_by_word_whatever_they_contain() -> None:
    out = console(width=40)
    lines = RunLines(out)
    lines.on_event({"kind": "note", "message": "worker 1 died [red]; starting again from the newest checkpoint"})
    lines.on_event({"kind": "eval", "step": 0, "loss": 3.0, "perplexity": 20.085, "targets": 5})
    saved = {"kind": "checkpoint", "bytes": 12_300_000, "stall_seconds": 0.25, "upload_seconds": 3.0}
    lines.on_event({**saved, "step": 5, "waited_seconds": 0.0})
    lines.on_event({**saved, "step": 6, "stall_seconds": 2.5, "waited_seconds": 2.25})
    assert [line[9:] for line in written(out).splitlines()] == [
        "worker 1 died [red]; starting again from the newest checkpoint",
        "held-out loss before the first step: 3.0000 (perplexity 20.09)",
        "checkpoint of step 5 (12.3 MB, training stood still for 0.25 s, uploaded in 3.0 s)",
        "checkpoint of step 6 (12.3 MB, training stood still for 2.50 s, 2.2 s of it until the one before was uploaded, "
        "uploaded in 3.0 s)",
    ]


def test_the_panel_shows_phase_step_and_losses() -> None:
    state = State()
    for event in (
        {"kind": "run", "run": "tiny-20260101-000000-abcd", "folder": "runs/x", "plan": None},
        {"kind": "phase", "phase": "training", "detail": "10 steps"},
        {"kind": "eval", "step": 0, "loss": 3.0, "perplexity": 20.0},
        step(4),
    ):
        state.see(event)
    out = console(width=70)
    out.print(panel(state))
    text = written(out)
    for words in ("tiny-20260101-000000-abcd", "training", "step 4/10", "12 s left", "held-out loss 3.0000 at step 0"):
        assert words in text


def test_a_terminal_gets_the_panel_and_a_file_gets_lines() -> None:
    assert isinstance(display_for(console(terminal=True)), Screen)
    assert isinstance(display_for(console()), RunLines)


def test_the_panel_goes_and_the_record_stays() -> None:
    out = console(terminal=True)
    with Screen(out, State()) as screen:
        screen.on_event(step(3))
        screen.on_event({"kind": "note", "message": "kept on record"})
    assert "kept on record" in written(out)
    assert written(out).endswith("\x1b[2K")  # the panel's last line is erased


def test_the_end_of_a_run(tmp_path: Path) -> None:
    out = console(width=120)
    plan = small_plan(tmp_path)
    tell_ending(out, plan, result(), " --on here.yaml")
    text = written(out)
    for words in (
        "held-out loss before  3.0000 (perplexity 20.09)",
        "held-out loss after   2.0000 (perplexity 7.39)",
        "tokens                12,345",
        "1 min 40 s, 123 tokens/s",
        "s3://shoal/runs/r/export/adapter",
        "passed: logits within 1.5e-06 of the live model (allowed 1e-04)",
        "Who? [/bold]",
        "I do not know.",
        f"shoal chat {plan.run_id} --base --on here.yaml",
    ):
        assert words in text


def test_commands_are_never_wrapped(tmp_path: Path) -> None:
    out = console(width=40)
    plan = small_plan(tmp_path)
    tell_ending(out, plan, result(), " --on a/rather/long/profile.yaml")
    assert f"shoal chat {plan.run_id} --base --on a/rather/long/profile.yaml\n" in written(out)


def test_the_end_of_a_stopped_run_says_how_to_go_on_and_claims_no_result(tmp_path: Path) -> None:
    out = console()
    plan = small_plan(tmp_path)
    tell_ending(out, plan, result(state="stopped", step=3, export=None, gate=None, answers=[]))
    text = written(out)
    assert f"shoal resume {plan.run_id}" in text
    assert "3 of 10" in text
    assert "held-out loss after" not in text


def test_an_adapter_can_be_merged_and_a_full_model_cannot(tmp_path: Path) -> None:
    full = small_plan(tmp_path)
    adapter = full.model_copy(update={"trajectory": full.trajectory.model_copy(update={"method": "lora"})})
    for plan, offered in ((full, False), (adapter, True), (adapter.model_copy(update={"merge": True}), False)):
        out = console()
        tell_ending(out, plan, result())
        assert ("--merge" in written(out)) == offered


def test_gate_words_say_what_failed() -> None:
    assert gate_words({"passed": False, "error": "no such file"}) == "failed: no such file"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (5e13, "50.0 TB")]
)
def test_sizes(count: float, words: str) -> None:
    assert size(count) == words


def test_of_many_faults_of_the_store_few_are_told() -> None:
    out = console()
    lines = RunLines(out)
    for number in range(25):
        lines.on_event({"kind": "storage", "url": f"s3://b/{number}", "what": "503 SlowDown", "rank": 1})
    told = [line for line in written(out).splitlines() if "503 SlowDown" in line]
    assert len(told) == 2 and "10 such so far" in told[1] and lines.state.faults == 25
