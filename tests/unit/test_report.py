"""One survey with every figure filled, as terminal text and as a page."""

import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from rich.console import Console

from shoal.survey import figures
from shoal.survey.advice import advice
from shoal.survey.figures import Bar, Pair, Place, Survey
from shoal.survey.page import page
from shoal.survey.report import report

EVIL = "<script>alert('x')</script><img src=http://evil.example/x.png> [bold]not markup[/bold] & \"quotes\""


def place(line: int) -> Place:
    return Place(object="s3://b/<b>a</b>.jsonl", line=line, text=EVIL)


PAIR = Pair(row=place(4), of=place(1), similarity=0.91)


def whole() -> Survey:
    split = figures.SplitFigures(samples=900, tokens=90_000, targets=4_500, supervised_share=0.05)
    found = Survey(
        shoal="0.1.0",
        digest="d1",
        prepared="s3://b/prepared/d1",
        rows=1000,
        accepted=960,
        sources=(
            figures.SourceFigures(
                split="train", path=EVIL, format="messages", weight=2.5, objects=1200, bytes=10**9, rows=1000,
                accepted=960, other_formats={"text": 3},
            ),
        ),
        rejected=(
            figures.Rejection(cause="malformed", rows=40, remedy="correct these", examples=((place(9), EVIL),)),
        ),
        train=split,
        validation=split,
        turns={1: 900, 3: 60},
        lengths=figures.Lengths(
            min=3, median=90, p90=200, p99=250, max=256, mean=101.5, at_limit=70, truncated=70, sequence_length=2048,
            histogram=(Bar(low=0, high=127, count=600), Bar(low=128, high=255, count=0), Bar(low=256, high=383, count=1)),
        ),
        packing=figures.Packing(rows=50, efficiency=0.88),
        exact_duplicates=figures.ExactDuplicates(
            rows=20, groups=10, share=0.02, largest=(figures.Copies(rows=5, first=place(1)),)
        ),
        near_duplicates=figures.NearDuplicates(
            threshold=0.8, compared=800, sampled=0.5, rows=80, share=0.1, examples=(PAIR,)
        ),
        answers=figures.Answers(
            empty=4, repeated_rows=30, repeated=(figures.RepeatedAnswer(prompts=25, rows=30, example=place(2)),)
        ),
        leakage=figures.Leakage(held_out=60, exact=3, near=2, near_compared=50, prompt=1, examples=(PAIR,)),
        languages=figures.Languages(
            sampled=500, prompts={"en": 400, "und": 100}, answers={"de": 500}, differ=300, examples=((place(3), "en", "de"),)
        ),
        ids=figures.Ids(rows=10, duplicates=2, examples=(PAIR,)),
        steps=figures.Steps(steps=30, steps_per_epoch=10, tokens=270_000),
    )  # fmt: skip
    return found.model_copy(update={"warnings": tuple(advice(found, 0.01))})


def text_of(found: Survey, width: int = 300) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*report(found), sep="\n")
    return console.export_text()


class Tags(HTMLParser):
    """What a browser makes of a page: its elements, their attributes, its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_rows_say_is_text_on_the_page_and_never_markup():
    made = page(whole(), f"job {EVIL}")
    seen = Tags(made)
    assert not {"script", "img", "b", "link", "iframe"} & set(seen.tags)
    assert EVIL in seen.text
    assert "<b>a</b>" in seen.text


def test_the_page_asks_for_nothing_and_runs_nothing():
    made = page(whole(), "job")
    seen = Tags(made)
    assert not [name for name, _ in seen.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert "url(" not in made and "@import" not in made
    assert "default-src 'none'" in made


def test_plots_are_drawings_whose_longest_bar_is_the_highest_count():
    made = page(whole(), "job")
    drawings = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", made, re.DOTALL)]
    assert len(drawings) == 5  # lengths, turns, causes, languages of prompts and of answers
    widths = [float(bar.get("width", "")) for bar in drawings[0].iter("rect")]
    assert widths == [400.0, 0.0, pytest.approx(0.7)]
    assert all(float(bar.get("width", "")) >= 0 for drawing in drawings for bar in drawing.iter("rect"))


def test_a_page_of_little():
    found = whole().model_copy(
        update={
            "train": None, "validation": None, "lengths": None, "packing": None, "leakage": None, "ids": None, "rejected": (),
            "steps": None, "warnings": (), "note": "left out", "turns": {}, "prepared": None,
            "languages": figures.Languages(sampled=0, prompts={}, answers={}, differ=0, examples=()),
        }
    )  # fmt: skip
    assert "left out" in page(found, "job")
    assert "left out" in text_of(found)
    assert "nothing to look at" in text_of(found)


def test_the_terminal_has_the_figures_and_takes_rows_as_text():
    told = text_of(whole())
    for words in (
        "messages, 3 of text", "1,200", "4,500 (5%)", "600  ███",
        "70 samples have exactly 2,048 tokens, where longer ones are cut",
        "50 rows of 2,048, 88.0% full", "30 (10 per epoch",
        "20 rows of 10 others (2.00%)", "80 of 800 rows (10.00%) resemble an earlier one at 0.8, on a share of 50.0%",
        "3 of 60 held-out rows as they are, 2 of 50 nearly so", "prompts en 80.0%, und 20.0%; answers de 100.0%",
        "40 of 1,000 rows are set apart (4.00%)", "one answer to 25 prompts", "[bold]", "near copy (0.91): ", "2.5",
    ):  # fmt: skip
        assert words in told, words


def test_every_figure_that_is_wrong_gets_its_advice_and_a_way_out():
    found = whole()
    assert [one.code for one in found.warnings] == [
        "leakage", "near-leakage", "prompt-leakage", "rejected", "mixed-formats", "duplicates", "near-duplicates",
        "repeated-answer", "few-targets", "truncated", "short-samples", "loose-packing", "duplicate-ids", "languages",
    ]  # fmt: skip
    assert all(one.what and one.fix for one in found.warnings)
    assert "data.max_rejected allows 1.0%" in found.warnings[3].what
    assert "allows" not in next(one for one in advice(found, 0.5) if one.code == "rejected").what


def test_the_document_reads_back():
    found = whole()
    assert Survey.model_validate_json(found.model_dump_json()) == found
