"""What is said of runs and sweeps whose files are cut short, empty, no JSON, or of another version of Shoal; odd calls."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from plans import small_plan
from sweeps import SWEEP_ID, write_sweep

from shoal import cli
from shoal.record.rows import line
from shoal.runs import RunFolder
from shoal.storage import Storage
from shoal.train.manifest import Manifest

RUN = "tiny-20260101-000000-abcd"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "no JSON": lambda text: b"\xff\x00 hello\n",
    "a list": lambda text: b"[1]",
    "another version's": lambda text: b'{"shoal": "99.1", "kinds": []}',
}
Told = tuple[int, str, str]
Shoal = Callable[..., Told]
"""The words of a command -> its exit status, stdout and stderr."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint, and a sweep."""
    place = tmp_path_factory.mktemp("sound")
    storage, folder = Storage(), RunFolder(Storage(), str(place / "runs" / RUN))
    storage.write(folder.plan, small_plan(place, run_id=RUN).model_dump_json().encode())
    times = [f"2026-01-01T00:00:{second:02}+00:00" for second in range(10)]
    events = [
        {"kind": "driver", "host": "a", "pid": 7},
        {"kind": "phase", "phase": "training"},
        {"kind": "ended", "state": "finished"},
    ]
    steps = [{"kind": "step", "step": step, "loss": 3.0, "tokens": 8, "seconds": 1.0} for step in range(1, 6)]
    for url, found in ((folder.events, events), (folder.metrics, steps)):
        text = "".join(line({"time": time, **row}) for time, row in zip(times, found, strict=False))
        storage.write(url, text.encode())
    result = {"state": "finished", "step": 5, "steps": 5, "loss": 1.5, "train_loss": 2.0, "export": "x", "gate": None}
    storage.write(folder.result, json.dumps(result).encode())
    storage.write(folder.ledger, b'{"goodput": 0.5}')
    manifest = Manifest(
        step=5, epoch=0, batch=5, tokens=1, seconds=1.0, run_id=RUN, trajectory_digest="t", trajectory={}, parts=(),
        created="", versions={},
    )  # fmt: skip
    storage.write(folder.manifest(5), manifest.model_dump_json().encode())
    write_sweep(place / "runs")
    return place


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    names = {name: str(tmp_path / name) for name in ("runs", "prepared", "cache")}
    (tmp_path / "local.yaml").write_text(yaml.safe_dump({"kind": "local", "storage": names}))
    return tmp_path


@pytest.fixture
def shoal(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shoal]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))

    def run(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["shoal", *words, "--on", "local.yaml"])
        status = cli._status()
        return (status, *capsys.readouterr())

    yield run
    assert not (place / "cache" / "bugs").exists() and not (place / "home").exists(), "a traceback was written"


def damage(place: Path, name: str, how: str) -> Path:
    path = place / "runs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DAMAGES[how](path.read_bytes() if path.exists() else b"{}"))
    return path


READERS = {
    f"{RUN}/plan.json": (("report", RUN), ("doctor", RUN)),
    f"{RUN}/result.json": (("report", RUN), ("doctor", RUN), ("export", RUN)),
    f"{RUN}/lease/000001.json": (("report", RUN), ("doctor", RUN), ("stop", RUN)),
    f"{SWEEP_ID}/sweep.json": (
        ("sweep", "show", "fish"), ("sweep", "best", "fish"), ("sweep", "resume", "fish"), ("logs", "fish"),
    ),
    f"{SWEEP_ID}/trials/0001.json": (("sweep", "show", "fish"), ("sweep", "best", "fish")),
    f"{SWEEP_ID}/trials/0001.end.json": (("sweep", "show", "fish"), ("sweep", "best", "fish")),
    f"{SWEEP_ID}-0008/result.json": (("sweep", "best", "fish"),),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_record_that_cannot_be_read_is_told_in_one_line(name: str, how: str, place: Path, shoal: Shoal) -> None:
    path = damage(place, name, how)
    wrote = "was written by shoal 99.1, and this is" if how == "another version's" else "is not whole; "
    for words in READERS[name]:
        for asked in (words, (*words, "--json")) if words[0] != "stop" else (words,):
            status, out, err = shoal(*asked)
            assert (status, out, err.count("\n")) == (2, "", 1), (asked, err)
            assert err.startswith(f"error: {path}: {wrote}"), (asked, err)


UNREADABLE = {f"{RUN}/result.json": RUN, f"{RUN}/lease/000001.json": RUN, f"{SWEEP_ID}/sweep.json": SWEEP_ID}
"""A file -> whose line of the list shows that it cannot be read."""


@pytest.mark.parametrize("how", DAMAGES)
def test_the_list_of_runs_has_the_others_all_the_same(how: str, place: Path, shoal: Shoal) -> None:
    for name in {*READERS, f"{RUN}/ledger.json", f"{RUN}/events.jsonl", f"{RUN}/metrics.jsonl"}:
        kept = place / "runs" / name
        before = kept.read_bytes() if kept.exists() else None
        if name.endswith("lease/000001.json"):
            (place / "runs" / RUN / "result.json").rename(place / "aside")
        damage(place, name, how)
        status, out, err = shoal("runs", "--json")
        assert (status, err) == (0, ""), name
        states = {one["id"]: one["state"] for one in json.loads(out)}
        whose = SWEEP_ID if "/trials/" in name else UNREADABLE.get(name)
        assert set(states) == {RUN, SWEEP_ID}
        assert {one for one, state in states.items() if state == "unreadable"} == {whose} - {None}, name
        kept.unlink() if before is None else kept.write_bytes(before)
        if (place / "aside").exists():
            (place / "aside").rename(place / "runs" / RUN / "result.json")


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "cut short"])
@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", "checkpoints/00000005/manifest.json"])
def test_without_these_the_rest_is_told(name: str, how: str, place: Path, shoal: Shoal) -> None:
    damage(place, f"{RUN}/{name}", how)
    for words in (("report", RUN), ("doctor", RUN), ("logs", RUN)):
        status, out, err = shoal(*words)
        assert status == 0, (words, err)
        assert RUN in out or words[0] == "logs"
        if name == "events.jsonl" and words[0] == "report":
            assert "events.jsonl says nothing" in out
    if name.startswith("checkpoints"):
        (place / "runs" / RUN / "result.json").unlink()
        assert "has a manifest that cannot be read and is skipped" in shoal("doctor", RUN)[1]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_run_whose_plan_is_gone_still_has_its_log(how: str, place: Path, shoal: Shoal) -> None:
    damage(place, f"{RUN}/plan.json", how)
    status, out, _ = shoal("logs", RUN, "--json")
    assert (status, len(json.loads(out))) == (0, 8)


ODD = [
    (("sweep", "stop", "fish"), 2, "shoal sweep stop: is no command, and no job file is called so; use  shoal stop SWEEP"),
    (("sweep", "shwo", "fish"), 2, "did you mean  shoal sweep show?"),
    (("sweep", "nobody.yaml"), 2, "nobody.yaml: there is no such job file"),
    (("sweep", ""), 2, "JOB: names no file; give one: is a variable empty?"),
    (("sweep", "show", " "), 2, "sweep: no sweep was named"),
    (("sweep", "show", "[x"), 2, "[x: no sweep in {place}/runs begins so; the newest are " + SWEEP_ID),
    (("sweep", "show", "../runs"), 2, "../runs: no sweep in {place}/runs begins so"),
    (("sweep", "show", "fish", "--html", ""), 2, "--html: . cannot be written: is a directory"),
    (("sweep", "show", "fish", "--html", "/dev/full"), 2, "--html: /dev/full cannot be written: no space left on device"),
    (("sweep", "best", "fish", "--job", "/proc/x.yaml"), 2, "--job: /proc/x.yaml cannot be written"),
    (("sweep", "best", "fish", "--export", "/proc/x"), 2, "--export: /proc/x cannot be made: no such file or directory"),
    (("sweep", "best", "fish", "--export", "local.yaml"), 2, "--export: local.yaml is there and not empty"),
    (("sweep", "resume", "fish", "--detach"), 2, "--detach: this profile trains in this very process"),
    (("sweep", "resume", "tiny"), 2, f"{RUN}: is a run, not a sweep; `shoal report {RUN}` shows it"),
    (("logs", "nobody"), 2, f"no run in {{place}}/runs begins so; the newest are begun, {SWEEP_ID}, {RUN}"),
    (("logs", "begun"), 0, "begun has written nothing yet"),
    (("logs", "begun", "--follow"), 1, "begun is not finished, and nobody drives it; what became of it says  shoal doctor begun"),
    (("stop", "begun", "--json"), 5, "begun: is not running: nobody is there to stop"),
    (("runs", "--prune", "--older-than", "soon"), 2, "--older-than: 'soon' is no age; write 12h, 7d or 4w"),
    (("runs", "--prune", "--whole"), 2, "--whole: would remove every run"),
    (("render", "--pool", "--out", " "), 2, "--out: names no folder; give one, or leave it out to print them"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "status", "said"), ODD, ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)
def test_an_odd_call_gets_an_answer(words: tuple[str, ...], status: int, said: str, place: Path, shoal: Shoal) -> None:
    for name in ("begun", "Some [Name]", "wéird", "deep/er", "empty"):
        (place / "runs" / name).mkdir(parents=True)
    for name in ("begun/plan.json", "Some [Name]/plan.json", "wéird/sweep.json", "deep/er/plan.json", "loose.json"):
        (place / "runs" / name).write_text("{}")
    done, out, err = shoal(*words)
    assert (done, out) == (status, "")
    assert said.format(place=place) in err


def test_ids_are_whole_however_narrow_the_terminal_is(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in ("40", "80", "200"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setenv("FORCE_COLOR", "1")
        _, out, _ = shoal("runs")
        assert RUN in out and SWEEP_ID in out
        assert ("loss" in out, "size" in out) == (width != "40", width == "200")
