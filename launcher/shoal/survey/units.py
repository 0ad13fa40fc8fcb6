"""One unit of a survey: the rows of a source object, or of one part of it, as fingerprints, signatures and counts.

Each unit leaves its files beside the prepared data; the summary is written last, and a second survey goes on from it.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from shoal.data.hashing import splitmix64
from shoal.data.prepare import Passed, Task, batches, same_object
from shoal.data.shards import REQUESTS, Unit
from shoal.rows.formats import detect, parse
from shoal.rows.samples import Completion, Conversation, Message, Preference, Rejected, Sample, Text, fingerprint
from shoal.rows.sources import Row, rows
from shoal.spec.base import Frozen
from shoal.spec.cluster import S3Spec
from shoal.storage import Storage, join
from shoal.survey.languages import UNKNOWN, language
from shoal.survey.near import BLANK, signatures

VERSION = 1
"""Of what units hold; raise it whenever the same rows would give other files."""
EXAMPLES = 3
"""Rows kept of each cause."""
TEXT_BYTES = 96
"""Of a row's prompt and of its answer, kept for examples."""

ROW = np.dtype(
    [("content", "<u8"), ("prompt", "<u8"), ("answer", "<u8"), ("id", "<u8"), ("line", "<i8"), ("held_out", "?")]
)
"""One accepted row: 64-bit fingerprints (0: nothing to compare), and its line within the part."""
TEXT = np.dtype([("prompt", f"S{TEXT_BYTES}"), ("answer", f"S{TEXT_BYTES}")])


@dataclass(frozen=True)
class Recipe:
    """What all units of one survey share. Picklable."""

    s3: S3Spec
    url: str
    """Folder of the survey."""
    validation_fraction: float
    compared: float
    """Share of the rows whose signatures are kept."""
    spoken: float
    """Share of the rows whose languages are told."""


class Counts(Frozen):
    """A unit's summary."""

    version: int = VERSION
    unit: int
    source: int
    url: str
    etag: str
    part: int
    lines: int
    """Physical lines of the part."""
    rows: int
    accepted: int
    rejected: dict[str, int]
    other_formats: dict[str, int]
    examples: dict[str, list[tuple[int, str]]]
    """By cause: (line within the part, what was found)."""
    turns: dict[int, int]
    languages: dict[str, int]
    """Rows by `PROMPT ANSWER`, two codes."""
    differ: list[tuple[int, str, str]]
    """(line within the part, prompt's language, answer's)"""


@dataclass(frozen=True)
class View:
    """What is compared of a sample."""

    prompt: str
    """What comes before the first answer, without the system's words."""
    answer: str
    """The last answer."""
    words: str
    """All but the system's words, which whole data sets share."""
    turns: int
    """Answers."""


def view(sample: Sample) -> View:
    match sample:
        case Text(text):
            return View("", "", text, 0)
        case Completion(prompt, completion):
            return View(prompt, completion, f"{prompt}\n{completion}", 1)
        case Conversation(messages):
            return _view(messages)
        case Preference(prompt, chosen, rejected):
            seen = _view((*prompt, *chosen))
            return View(seen.prompt, seen.answer, f"{seen.words}\n{_joined(rejected)}", seen.turns)


def _view(messages: tuple[Message, ...]) -> View:
    spoken = tuple(one for one in messages if one.role != "system")
    answers = [place for place, one in enumerate(spoken) if one.role == "assistant"]
    first, last = answers[0], answers[-1]
    return View(_joined(spoken[:first]), spoken[last].content, _joined(spoken), len(answers))


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(one.content for one in messages)


def names(unit: int) -> tuple[str, str, str, str]:
    """Of a unit's summary, rows, signatures and texts."""
    return tuple(f"unit-{unit:05d}.{what}" for what in ("json", "rows.npy", "signatures.npz", "texts.bin"))  # type: ignore[return-value]


def finished(storage: Storage, url: str, every: Sequence[Unit]) -> dict[int, Counts]:
    """The units that an earlier survey finished."""
    mine = {names(unit.number)[0]: unit for unit in every}
    there = [name for one in storage.list(join(url, "")) if (name := one.url.rpartition("/")[2]) in mine]
    with ThreadPoolExecutor(REQUESTS) as threads:
        texts = list(threads.map(lambda name: storage.read(join(url, name)), there))
    found = {}
    for name, text in zip(there, texts, strict=True):
        with suppress(ValidationError):  # of another version
            unit, known = mine[name], Counts.model_validate_json(text)
            if (known.version, known.url, known.etag) == (VERSION, unit.object.url, unit.object.etag):
                found[unit.number] = known
    return found


def survey_unit(recipe: Recipe, task: Task) -> Iterator[Passed | Counts]:
    """Surveys one unit; the same one gives as many items each time.

    Raises DataError when the object is no longer the one that the plan was made for.
    """
    storage, unit = Storage(recipe.s3), task.unit
    same_object(storage, unit.object)
    collected = _Collected(recipe, task)
    found = rows(storage, unit.object, unit.part, unit.parts)
    for batch in batches(found):
        collected.add(batch)
        yield Passed(unit.number, collected.rows, 0)
    same_object(storage, unit.object)
    yield collected.write(storage, found.lines)


class _Collected:
    """What has been seen of a unit: a few hundred bytes for each row."""

    def __init__(self, recipe: Recipe, task: Task):
        self.recipe, self.task, self.columns = recipe, task, dict(task.columns)
        self.rows = 0
        self.rejected, self.other_formats, self.turns = Counter[str](), Counter[str](), Counter[int]()
        self.languages, self.differ = Counter[str](), list[tuple[int, str, str]]()
        self.examples: dict[str, list[tuple[int, str]]] = {}
        self.arrays: list[np.ndarray] = []
        self.texts: list[np.ndarray] = []
        self.signatures: list[np.ndarray] = []
        self.signed: list[np.ndarray] = []
        self.accepted = 0

    def add(self, batch: list[tuple[int, Row]]) -> None:
        self.rows += len(batch)
        read = list(self._parsed(batch))
        array = np.array([entry for entry, _ in read], ROW)
        views = [seen for _, seen in read]
        self.arrays.append(array)
        self.texts.append(np.array([(_cut(one.prompt), _cut(one.answer or one.words)) for one in views], TEXT))
        self.turns.update(one.turns for one in views)
        self._sign(views)
        self._listen(array, views)
        self.accepted += len(read)

    def _parsed(self, batch: list[tuple[int, Row]]) -> Iterator[tuple[tuple[int | bool, ...], View]]:
        for line, row in batch:
            sample = row if isinstance(row, Rejected) else parse(row, self.task.format, self.columns)
            if isinstance(sample, Rejected):
                self._reject(line, row, sample)
                continue
            assert isinstance(row, dict)
            content, seen = fingerprint(sample), view(sample)
            held_out = self.task.held_out or content < self.recipe.validation_fraction * 2**64
            identity = row.get("id")
            marks = (
                content or 1,
                _mark(seen.prompt),
                _mark(seen.answer),
                0 if identity is None else _mark(str(identity)),
            )
            yield (*marks, line, held_out), seen

    def _reject(self, line: int, row: Row, why: Rejected) -> None:
        self.rejected[why.cause] += 1
        if isinstance(row, dict) and why.cause == "other-format":
            self.other_formats[detect([row])] += 1
        kept = self.examples.setdefault(why.cause, [])
        kept += [(line, why.detail)] if len(kept) < EXAMPLES else []

    def _sign(self, views: list[View]) -> None:
        """Rows are chosen by a number of their signature, which near copies mostly share: they are chosen together."""
        found = signatures([one.words for one in views])
        share = _below(found[:, -1].astype(np.uint64), self.recipe.compared)
        chosen = np.flatnonzero(share & (found != BLANK).any(axis=1))
        self.signatures.append(found[chosen])
        self.signed.append(chosen + self.accepted)

    def _listen(self, array: np.ndarray, views: list[View]) -> None:
        for place in np.flatnonzero(_below(array["content"], self.recipe.spoken)).tolist():
            seen = views[place]
            if not seen.turns:
                self.languages[f"{UNKNOWN} {language(seen.words)}"] += 1
                continue
            asked, answered = language(seen.prompt), language(seen.answer)
            self.languages[f"{asked} {answered}"] += 1
            if UNKNOWN not in (asked, answered) and asked != answered and len(self.differ) < EXAMPLES:
                self.differ.append((int(array["line"][place]), asked, answered))

    def write(self, storage: Storage, lines: int) -> Counts:
        unit = self.task.unit
        summary, kept, signed, texts = names(unit.number)
        storage.write(join(self.recipe.url, kept), _npy(np.concatenate([np.empty(0, ROW), *self.arrays])))
        storage.write(join(self.recipe.url, texts), b"".join(part.tobytes() for part in self.texts))
        buffer = io.BytesIO()
        places = np.concatenate([np.empty(0, np.int64), *self.signed])
        np.savez(buffer, places=places, signatures=np.concatenate([signatures([]), *self.signatures]))
        storage.write(join(self.recipe.url, signed), buffer.getvalue())
        found = Counts(
            unit=unit.number,
            source=unit.source,
            url=unit.object.url,
            etag=unit.object.etag,
            part=unit.part,
            lines=lines,
            rows=self.rows,
            accepted=self.accepted,
            rejected=dict(sorted(self.rejected.items())),
            other_formats=dict(sorted(self.other_formats.items())),
            examples=self.examples,
            turns=dict(sorted(self.turns.items())),
            languages=dict(sorted(self.languages.items())),
            differ=self.differ,
        )
        storage.write(join(self.recipe.url, summary), found.model_dump_json(indent=1).encode())
        return found


def _mark(text: str) -> int:
    """64 bits of a text, blind to case and white space; 0 for a blank one."""
    words = " ".join(text.casefold().split())
    return (
        int.from_bytes(hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        if words
        else 0
    )


def _cut(text: str) -> bytes:
    """The beginning of a text, on one line."""
    return " ".join(text[: 2 * TEXT_BYTES].split()).encode()[:TEXT_BYTES]


def _below(values: np.ndarray, share: float) -> np.ndarray:
    """bool[n]: whether a hash of each of uint64[n] falls into this share of all."""
    return splitmix64(values) < share * 2.0**64 if share < 1 else np.ones(len(values), np.bool_)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
