"""The goodput ledger over invented rows: every second has its place, and none has two."""

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from shoal.record.ledger import PARTS, Ledger, ledger
from shoal.record.rows import Row, parse
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.journal import thrown
from shoal.train.voice import Voice
from shoal.train.world import Directive, Pulse


def at(moment: float, number: int, kind: str = "", /, **fields: Any) -> Row:
    time = datetime.fromtimestamp(1_800_000_000 + moment, UTC).isoformat(timespec="milliseconds")
    return {"time": time, "attempt": number, "kind": kind} | fields


def phase(seconds: float, attempt: int, name: str) -> Row:
    return at(seconds, attempt, "phase", phase=name)


def step(seconds: float, attempt: int, number: int, took: float = 2.0, waited: float = 0.5) -> Row:
    return at(seconds, attempt, "step", step=number, seconds=took, data_seconds=waited)


def spent(book: Ledger) -> dict[str, float]:
    return {part: round(seconds, 3) for part, seconds in book.seconds.items() if seconds}


def test_each_phase_has_its_part() -> None:
    events = [
        at(0, 0, "driver"),
        phase(5, 1, "loading"),
        phase(8, 1, "evaluating"),
        phase(10, 1, "training"),
        phase(14, 1, "saving"),
        phase(15, 1, "training"),
        phase(17.5, 1, "exporting"),
        at(19, 1, "result"),
        at(20, 1, "ended", state="finished"),
    ]
    metrics = [at(10, 1, "eval", step=0), step(12, 1, 1), step(14, 1, 2), step(17, 1, 3)]
    book = ledger(events, metrics)
    assert spent(book) == {
        "computing": 4.5, "data": 1.5, "saving": 1.0, "starting": 8.0, "evaluating": 2.0, "exporting": 2.5, "other": 0.5,
    }  # fmt: skip
    assert book.total == pytest.approx(20)
    assert sum(book.share(part) for part in PARTS) == pytest.approx(1)
    assert book.goodput == pytest.approx(4.5 / 20)
    assert (book.attempts, book.steps, book.repeated_steps) == (1, 3, 0)


def crash(gap: list[Row]) -> Ledger:
    """Steps 1 to 4, the checkpoint of step 2; the workers die after step 4 and go on at 30."""
    dropped = [step(6, 1, 3), step(8, 1, 4)]
    events = [
        at(0, 0, "driver"),
        phase(0, 1, "training"),
        *gap,
        phase(30, 2, "loading"),
        *(at(33, 2, **event) for event in thrown(dropped, after_step=2)),
        phase(34, 2, "training"),
        phase(38, 2, "exporting"),
    ]
    return ledger(events, [step(2, 1, 1), step(4, 1, 2), step(36, 2, 3), step(38, 2, 4)])


def test_workers_that_begin_again_are_restarting_from_their_last_sign_of_life() -> None:
    for gap in ([], [at(20, 1, "failure", rank=1, cause="process died")], [at(20, 2, "failure", rank=1)]):
        book = crash(gap)
        assert spent(book) == {"computing": 6.0, "data": 2.0, "repeated": 4.0, "restarting": 26.0}
        assert book.repeated_steps == 2


def test_without_a_driver_a_run_is_down() -> None:
    """The driver died with its workers, and came back ten seconds before they went on."""
    book = crash([at(20, 1, "driver")])
    assert spent(book) == {"computing": 6.0, "data": 2.0, "repeated": 4.0, "down": 12.0, "restarting": 14.0}


def test_a_driver_that_comes_to_nothing_is_no_sign_that_the_run_goes_on() -> None:
    book = crash([at(10, 1, "driver"), at(12, 1, "ended", state="failed"), at(20, 1, "driver")])
    assert spent(book)["down"] == 10.0
    assert spent(book)["restarting"] == 12.0 + 4.0


@pytest.mark.parametrize("state", ["stopped", "left"])
def test_the_clock_stands_still_while_a_run_is_stopped_on_request(state: str) -> None:
    book = crash([at(9, 1, "ended", state=state), at(20, 1, "driver")])
    assert "down" not in spent(book)
    assert book.total == pytest.approx(38 - 11)
    assert spent(book)["restarting"] == 14.0


def test_steps_that_are_not_written_down_count() -> None:
    rows: list[Row] = []

    class Book:
        def record(self, event: Row) -> None:
            rows.append(event)

    voice = Voice(lambda event: Directive.CONTINUE, Book(), Pulse())  # type: ignore[arg-type]
    for number in range(1, 8):
        voice.tell({"kind": "step", "step": number, "seconds": 2.0, "data_seconds": 0.25}, record=number == 5)
    voice.phase("saving")
    assert [(row.get("step"), row.get("covers")) for row in rows] == [
        (5, {"steps": 5, "seconds": 10.0, "data_seconds": 1.25}),
        (7, {"steps": 2, "seconds": 4.0, "data_seconds": 0.5}),
        (None, None),
    ]
    metrics = [at(10, 1, **rows[0]), at(14, 1, **rows[1])]
    events = [phase(0, 1, "training"), at(14, 1, **rows[2])]
    assert spent(ledger(events, metrics)) == {"computing": 12.25, "data": 1.75}
    [event] = thrown([metrics[1]], after_step=5)
    assert (event["steps"], event["seconds"], event["of"]) == (2, 4.0, 1)


def test_steps_of_several_attempts_can_be_thrown_away_at_once() -> None:
    """The newest checkpoint was damaged, so that the third attempt begins where the first one did."""
    found = thrown([step(2, 1, 1), step(4, 1, 2), step(12, 2, 3), at(12, 2, "eval", step=3)], after_step=0)
    assert [(event["of"], event["steps"], event["seconds"]) for event in found] == [(1, 2, 4.0), (2, 1, 2.0)]


@pytest.mark.parametrize("seed", range(30))
def test_shares_sum_to_one_whatever_the_rows(seed: int) -> None:
    draw = random.Random(seed)
    events, metrics, now = [], [], 0.0
    for attempt in range(1, draw.randint(2, 6)):
        for _ in range(draw.randint(1, 12)):
            now += draw.random() * 9
            kind = draw.choice(["phase", "step", "note", "failure", "driver", "ended", "repeated"])
            match kind:
                case "phase":
                    names = ["loading", "training", "evaluating", "saving", "exporting"]
                    events.append(phase(now, attempt, draw.choice(names)))
                case "step":
                    metrics.append(step(now, attempt, draw.randint(1, 9), draw.random() * 20, draw.random() * 20))
                case "ended":
                    events.append(at(now, attempt, kind, state=draw.choice(["stopped", "failed"])))
                case "repeated":
                    until = at(now - 3, 1, "")["time"]
                    events.append(at(now, attempt, kind, of=attempt, steps=1, seconds=draw.random() * 9, until=until))
                case _:
                    events.append(at(now, attempt, kind))
    book = ledger(events, metrics)
    assert min(book.seconds.values()) >= 0
    assert book.total <= now + 3
    assert not book.total or sum(book.share(part) for part in PARTS) == pytest.approx(1)


def test_an_empty_or_an_older_run_folder_has_a_ledger() -> None:
    assert ledger([], []).goodput is None
    assert ledger([], [{"kind": "step", "step": 7, "loss": 2.0}]).as_json()["steps"] == 7


def test_it_is_json(tmp_path) -> None:
    body = crash([]).as_json()
    assert json.loads(json.dumps(body)) == body
    assert list(body["parts"]) == list(PARTS)


def test_a_driver_adds_its_row_to_what_the_workers_wrote(tmp_path) -> None:
    from shoal.record.rows import append, line, read

    folder = RunFolder(Storage(), str(tmp_path / "run"))
    append(folder, {"kind": "driver", "pid": 1})
    whole = folder.storage.read(folder.events) + line(phase(1, 1, "training")).encode()
    folder.storage.write(folder.events, whole + b'{"kind": "pha')
    append(folder, {"kind": "driver", "pid": 2})
    found = read(folder)
    assert [(row["kind"], row["attempt"]) for row in found.events] == [("driver", 0), ("phase", 1), ("driver", 1)]
    assert found.metrics == []
    assert parse(b"") == []
