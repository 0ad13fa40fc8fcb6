"""check and prepare as a data engineer meets them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import WORDS, write_rows

from shoal import cli
from shoal.backends.inline import Inline

Shoal = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shoal:
    """Runs one command in an empty folder; gives (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SHOAL_PROFILE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
        return cli._status(), *capsys.readouterr()

    return run


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path) -> Path:
    """job.yaml over 60 rows, the first of them once more, and here.yaml, all in local folders."""
    rows = write_rows(tmp_path / "rows.jsonl")
    first = rows.read_text().splitlines()[0]
    with rows.open("a") as file:
        file.write(first + "\n")
    data = "{train: rows.jsonl, validation: 0.2, sequence_length: 96}"
    (tmp_path / "job.yaml").write_text(f"name: tiny\nmodel: {{base: {tiny_model}}}\ndata: {data}\n")
    places = "".join(f"  {name}: {tmp_path / name}\n" for name in ("runs", "prepared", "cache"))
    (tmp_path / "here.yaml").write_text(f"kind: inline\nstorage:\n{places}")
    return tmp_path


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_help_teaches_by_an_example(shoal: Shoal, verb: str) -> None:
    status, out, _ = shoal(verb, "--help")
    assert status == 0
    assert f"Example:  shoal {verb} jobs/quickstart.yaml" in out


def test_check_says_what_there_is_and_what_it_makes(shoal: Shoal, here: Path) -> None:
    status, out, err = shoal("check", "job.yaml", "--on", "here.yaml")
    assert status == 0, err
    for words in (
        "rows.jsonl  messages",
        "61",
        "learnt tokens",
        "tokens per sample",
        "% full",
        "per epoch",
        "to look at",
    ):
        assert words in out
    assert "Traceback" not in out + err


def test_one_document_of_json_and_nothing_else_on_stdout(shoal: Shoal, here: Path) -> None:
    status, out, _ = shoal("check", "job.yaml", "--on", "here.yaml", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["rows"], found["accepted"], found["exact_duplicates"]["rows"]) == (61, 61, 1)
    assert found["train"]["samples"] + found["validation"]["samples"] == 61
    assert found["steps"]["steps"] >= 1
    assert sum(bar["count"] for bar in found["lengths"]["histogram"]) == found["train"]["samples"]
    assert 0 < found["train"]["supervised_share"] < 1
    assert found["leakage"]["exact"] == 0


def test_a_second_check_reads_no_row(shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shoal("check", "job.yaml", "--on", "here.yaml", "--json")
    monkeypatch.setattr(Inline, "map", lambda self, work, todo: pytest.fail("rows are read again"))
    assert shoal("check", "job.yaml", "--on", "here.yaml", "--json")[:2] == first[:2]


def test_steps_follow_the_job_though_the_survey_is_kept(shoal: Shoal, here: Path) -> None:
    counts = [
        json.loads(shoal("check", "job.yaml", "--on", "here.yaml", "--json", "--set", f"train.batch_size={size}")[1])
        for size in (1, 4)
    ]
    assert counts[0]["steps"]["steps"] > counts[1]["steps"]["steps"]
    assert counts[0]["steps"]["tokens"] == counts[1]["steps"]["tokens"]


def test_the_page_is_written_where_it_is_asked_for(shoal: Shoal, here: Path) -> None:
    with (here / "rows.jsonl").open("a") as file:
        bad = {
            "messages": [
                {"role": "user", "content": "<script>alert(1)</script>"},
                {"role": "assistant", "content": "x"},
            ]
        }
        file.write((json.dumps(bad) + "\n") * 2)
    status, out, _ = shoal("check", "job.yaml", "--on", "here.yaml", "--html", "survey.html")
    assert status == 0
    assert "survey.html" in out
    made = (here / "survey.html").read_text()
    assert "<script" not in made
    assert "&lt;script&gt;alert(1)" in made
    assert "<svg" in made


def test_a_page_without_a_folder_is_refused_before_anything_is_read(shoal: Shoal, here: Path) -> None:
    status, _, err = shoal("check", "job.yaml", "--on", "here.yaml", "--html", "nowhere/survey.html")
    assert status == 2
    assert err.startswith("error: --html: there is no folder nowhere")
    assert not (here / "prepared").exists()


def test_samples_are_shown_with_what_is_learnt_between_marks(shoal: Shoal, here: Path) -> None:
    status, out, _ = shoal("check", "job.yaml", "--on", "here.yaml", "--show", "2")
    assert status == 0
    assert out.count("«") == 2
    assert "<|im_end|>»" in out


def test_too_many_rejected_rows_are_surveyed_all_the_same_and_the_status_says_so(shoal: Shoal, here: Path) -> None:
    with (here / "rows.jsonl").open("a") as file:
        file.write('{"messages": []}\n' * 3)
    status, out, err = shoal("check", "job.yaml", "--on", "here.yaml")
    assert status == 3
    assert "wrong-type" in out
    assert "data.max_rejected allows 1.0%" in err
    again = json.loads(shoal("check", "job.yaml", "--on", "here.yaml", "--json")[1])
    assert again["rejected"][0]["rows"] == 3


def test_preference_rows_are_surveyed_without_tokens(shoal: Shoal, here: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"yes {WORDS[n % 19]} {n}", "rejected": f"no {n}"} for n in range(20)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3]]))
    status, out, err = shoal("check", "job.yaml", "--on", "here.yaml", "--json", "--set", "data.validation=0")
    assert status == 0, err
    found = json.loads(out)
    assert (found["rows"], found["exact_duplicates"]["rows"], found["train"], found["steps"]) == (21, 1, None, None)
    assert "no method learns from them yet" in found["note"]
    assert "no method learns from them yet" in shoal("check", "job.yaml", "--on", "here.yaml")[1]
    status, _, err = shoal("prepare", "job.yaml", "--on", "here.yaml")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: data.format: preference rows are read")


def test_prepare_says_where_and_how_much(shoal: Shoal, here: Path) -> None:
    status, out, _ = shoal("prepare", "job.yaml", "--on", "here.yaml")
    assert status == 0
    assert str(here / "prepared") in out
    assert "to train on" in out
    status, out, _ = shoal("prepare", "job.yaml", "--on", "here.yaml", "--json")
    found = json.loads(out)
    assert found["samples"] + found["validation_samples"] == 61
    assert found["bytes"] > 0
    assert found["cleaned"] is None
    assert Path(found["prepared"]).is_dir()


def test_a_cleaned_set_is_what_the_next_job_reads(shoal: Shoal, here: Path) -> None:
    with (here / "rows.jsonl").open("a") as file:
        file.write('{"messages": []}\n' * 3)
    status, out, err = shoal("prepare", "job.yaml", "--on", "here.yaml", "--dedupe", "--to", "clean")
    assert status == 0, err
    assert "60 of 64; left out: 3 wrong-type, 1 duplicate" in out
    line = out.strip().splitlines()[-1]
    assert line == f"  train: {here}/clean/*.jsonl.zst"
    again = ("--on", "here.yaml", "--set", f"data.train={here}/clean/*.jsonl.zst")
    status, out, err = shoal("check", "job.yaml", *again, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["rows"], found["accepted"], found["exact_duplicates"]["rows"]) == (60, 60, 0)


def test_the_default_location_follows_from_what_goes_in(shoal: Shoal, here: Path) -> None:
    def location(*options: str) -> Any:
        return json.loads(shoal("prepare", "job.yaml", "--on", "here.yaml", "--json", *options)[1])["cleaned"][
            "location"
        ]

    first = location("--dedupe")
    assert first.startswith(str(here / "prepared" / "cleaned"))
    assert location("--dedupe") == first
    assert location("--near") != first


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--drop-leaks", "--set", "data.validation=0"], "--drop-leaks: nothing is held out"),
        (["--dedupe", "--to", "."], "--to: "),
        (["--threshold", "7", "--near"], "--threshold"),
    ],
)
def test_a_mistake_is_one_line(shoal: Shoal, here: Path, options: list[str], told: str) -> None:
    status, _, err = shoal("prepare", "job.yaml", "--on", "here.yaml", *options)
    assert status in (2, 3)
    assert told in err
    assert "Traceback" not in err
