"""What a row is once it is understood, and what a row is called that is not."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rejected:
    """A row that is set apart: a short stable cause (a key of REMEDIES) and what was found."""

    cause: str
    detail: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str
    """Empty only where an assistant calls tools instead, or where a tool answers nothing."""
    learn: bool = True
    """False: never learnt, whatever data.train_on says."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """In OpenAI's form, the arguments as an object."""
    name: str | None = None
    """Of the tool that answers, or of a speaker."""
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What the assistant thought first, where a row holds it apart from the content."""

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates take, without what is absent."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = list(self.tool_calls)
        if self.name is not None:
            found["name"] = self.name
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        if self.reasoning is not None:
            found["reasoning_content"] = self.reasoning
        return found


@dataclass(frozen=True)
class Conversation:
    """At least one message is the assistant's."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """What the assistant may call, in OpenAI's form."""
    given: int = 0
    """So many of the first messages are a prompt: no answer, though the assistant may speak in them."""


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


@dataclass(frozen=True)
class Preference:
    """Two different answers to one prompt, the first the better."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


Sample = Conversation | Completion | Text | Preference


def fingerprint(sample: Sample) -> int:
    """64 bits of the sample's content alone: equal samples go to the same split wherever they stand.

    Raises UnicodeEncodeError where a string holds lone surrogates, which are no text.
    """
    match sample:
        case Conversation(messages, tools):
            parts = [*_parts(messages), *map(_canonical, tools)]
        case Completion(prompt, completion):
            parts = [prompt, completion]
        case Text(text):
            parts = [text]
        case Preference(prompt, chosen, rejected, tools):
            parts = [part for side in (prompt, chosen, rejected) for part in ("", *_parts(side))]
            parts += map(_canonical, tools)
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def _parts(messages: tuple[Message, ...]) -> list[str]:
    parts = []
    for message in messages:
        parts += [message.role, message.content]
        if message.tool_calls or message.name or message.tool_call_id or message.reasoning:
            others = message.as_dict()
            del others["role"], others["content"]
            parts.append(_canonical(others))
    return parts


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
