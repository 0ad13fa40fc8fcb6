"""What a row means: tells the format of rows and turns one row into a sample, or says why not."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shoal.errors import DataError, Problem

Format = Literal["messages", "instruction", "prompt-completion", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
KEYS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
ROLES = ("system", "user", "assistant")

REMEDIES = {
    "malformed": "correct or remove these lines",
    "invalid-utf8": "save the file as UTF-8",
    "missing-field": "fill the field, or set data.format to the one that these rows have",
    "wrong-type": "write strings, and messages as a list of {role, content}",
    "unknown-role": f"use the roles {', '.join(ROLES)}",
    "role-order": "let each conversation begin with an optional system message and then a user message",
    "empty-prompt": "fill or remove these rows",
    "empty-answer": "fill or remove these rows: nothing could be learnt from them",
    "empty-text": "remove these rows",
    "overlength": "raise data.sequence_length, or set data.overlength: truncate",
    "no-target": "raise data.sequence_length: the prompt alone fills the row",
    "template": "change the conversation to what the model's chat template takes",
    "unstable-template": "split each conversation into rows that end with one answer, or use a model whose chat "
    "template writes an earlier answer as it wrote it last",
}
"""Every cause of a rejection, and what a person changes about it."""

_ELSEWHERE = {
    "conversations": "rename `conversations` to `messages`, `from` to `role` and `value` to `content`",
    "question": "rename `question` to `prompt` and `answer` to `completion`",
    "response": "rename the answer to `completion` and the question to `prompt`",
    "chosen": "preference data are not supported; keep `prompt` and rename `chosen` to `completion`",
    "content": "rename `content` to `text`",
}


@dataclass(frozen=True)
class Rejected:
    """A row that is set apart: a short stable cause (a key of REMEDIES) and what was found."""

    cause: str
    detail: str


@dataclass(frozen=True)
class Conversation:
    """Messages as (role, content), at least one of the assistant's."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and its answer; `separator` stands between them where no chat template does."""

    prompt: str
    completion: str
    separator: str = ""


@dataclass(frozen=True)
class Text:
    """Running text, learnt from its first token to its last."""

    text: str


Sample = Conversation | Completion | Text


def detect(rows: Iterable[Mapping[str, Any] | Rejected], where: str = "data.train") -> Format:
    """The format that most of these first rows have; raises DataError when none is recognised or there are no rows."""
    keys: dict[str, None] = {}
    votes = dict.fromkeys(FORMATS, 0)
    for row in rows:
        if isinstance(row, Rejected):
            continue
        keys.update(dict.fromkeys(row))
        for name in FORMATS:
            if all(key in row for key in KEYS[name]):
                votes[name] += 1
                break
    best = max(FORMATS, key=lambda name: votes[name])
    if votes[best]:
        return best
    if not keys:
        raise DataError(Problem(where, "no readable row was found", "check that the location holds rows"))
    advice = [text for key, text in _ELSEWHERE.items() if key in keys]
    known = "; ".join(f"{name}: {' + '.join(KEYS[name])}" for name in FORMATS)
    raise DataError(
        Problem(
            where,
            f"rows have the fields {', '.join(sorted(keys)[:12])}, which is no format Shoal reads",
            advice[0] if advice else f"use one of {known}",
        )
    )


def parse(row: Mapping[str, Any], format: Format) -> Sample | Rejected:
    """One row as a sample. Fields that the format does not name are ignored."""
    match format:
        case "messages":
            sample = _conversation(row)
        case "instruction":
            sample = _instruction(row)
        case "prompt-completion":
            sample = _completion(row)
        case "text":
            sample = _text(row)
    if not isinstance(sample, Rejected) and not _is_unicode(sample):
        return Rejected("invalid-utf8", "a string holds bytes or surrogates that are not text")
    return sample


def fingerprint(sample: Sample) -> int:
    """64 bits of the sample's content alone: equal samples go to the same split wherever they stand."""
    match sample:
        case Conversation(messages):
            parts = [part for message in messages for part in message]
        case Completion(prompt, completion):
            parts = [prompt, completion]
        case Text(text):
            parts = [text]
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def _string(row: Mapping[str, Any], key: str) -> str | Rejected:
    value = row.get(key)
    if value is None:
        return Rejected(
            "missing-field", f"`{key}` is missing; the row has {', '.join(sorted(map(str, row))) or 'none'}"
        )
    if not isinstance(value, str):
        return Rejected("wrong-type", f"`{key}` is {_kind(value)} and must be a string")
    return value


def _conversation(row: Mapping[str, Any]) -> Conversation | Rejected:
    messages = row.get("messages")
    if messages is None:
        return Rejected("missing-field", f"`messages` is missing; the row has {', '.join(sorted(map(str, row)))}")
    if not isinstance(messages, list) or not messages:
        return Rejected("wrong-type", "`messages` must be a list of {role, content} that is not empty")
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return Rejected("wrong-type", f"`messages[{number}]` is {_kind(message)} and must be {{role, content}}")
        role, content = _string(message, "role"), _string(message, "content")
        for value in (role, content):
            if isinstance(value, Rejected):
                return Rejected(value.cause, f"messages[{number}]: {value.detail}")
        assert isinstance(role, str) and isinstance(content, str)
        if role not in ROLES:
            return Rejected("unknown-role", f"messages[{number}].role is {role!r:.40}")
        if role == "assistant" and not content.strip():
            return Rejected("empty-answer", f"messages[{number}].content of the assistant is empty")
        turns.append((role, content))
    spoken = [role for role, _ in turns if role != "system"]
    if "assistant" not in spoken:
        return Rejected("empty-answer", "no message is the assistant's")
    if spoken[0] != "user":
        return Rejected("role-order", "the assistant speaks before the user")
    return Conversation(tuple(turns))


def _instruction(row: Mapping[str, Any]) -> Completion | Rejected:
    instruction, output = _string(row, "instruction"), _string(row, "output")
    extra = _string(row, "input") if row.get("input") is not None else ""
    for value in (instruction, output, extra):
        if isinstance(value, Rejected):
            return value
    assert isinstance(instruction, str) and isinstance(output, str) and isinstance(extra, str)
    prompt = "\n\n".join(part for part in (instruction, extra) if part.strip())
    if not prompt:
        return Rejected("empty-prompt", "`instruction` and `input` are empty")
    if not output.strip():
        return Rejected("empty-answer", "`output` is empty")
    return Completion(prompt, output, separator="\n\n")


def _completion(row: Mapping[str, Any]) -> Completion | Rejected:
    prompt, completion = _string(row, "prompt"), _string(row, "completion")
    for value in (prompt, completion):
        if isinstance(value, Rejected):
            return value
    assert isinstance(prompt, str) and isinstance(completion, str)
    if not completion.strip():
        return Rejected("empty-answer", "`completion` is empty")
    return Completion(prompt, completion)


def _text(row: Mapping[str, Any]) -> Text | Rejected:
    text = _string(row, "text")
    if isinstance(text, Rejected):
        return text
    return Text(text) if text.strip() else Rejected("empty-text", "`text` is empty")


def _is_unicode(sample: Sample) -> bool:
    """Tokenizers cannot take lone surrogates, which JSON's \\ud800 and undecodable bytes both become."""
    try:
        fingerprint(sample)
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), type(value).__name__)
