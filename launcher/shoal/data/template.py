"""A sample as tokens, with exactly the tokens marked that the model shall learn to write.

Most chat templates do not say which tokens are the assistant's, so that is derived: what the template writes for the
messages before an answer (with the generation prompt) and for those up to it must both be beginnings of the whole; an
answer is what lies between.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from shoal.data.formats import Completion, Conversation, Rejected, Sample, Text
from shoal.errors import ModelError, Problem

PINNED_DATE = date(2024, 7, 26)
"""What templates take as today: tokens must not depend on the day of preparation. Llama's own default."""
TRUNCATE = "truncate"

Message = dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """One document."""

    input_ids: np.ndarray
    """int64[length]."""
    loss_mask: np.ndarray
    """bool[length]: True where the token is learnt (as a prediction from those before it)."""


@dataclass(frozen=True)
class _Rendered:
    """Text to tokenise; `spans` are the characters (start, end) to learn."""

    text: str
    spans: tuple[tuple[int, int], ...]
    raw: bool
    """Not from a chat template: the tokenizer's own BOS goes before it and EOS, to be learnt, behind it."""


def encode(sample: Sample, tokenizer: Any, sequence_length: int, overlength: str) -> list[Encoded] | Rejected:
    """One sample; see Encoder."""
    return Encoder(tokenizer, sequence_length, overlength).encode([sample])[0]


class Encoder:
    """Encodes many samples at a time with a tokenizer of transformers.

    Raises ModelError when the tokenizer lacks what the samples need: offsets, an end-of-text token, a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int,
        overlength: str,
        train_on: str = "assistant",
        chat_template: str | None = None,
    ):
        if not getattr(tokenizer, "is_fast", False):
            fix = "use a model with a tokenizer.json"
            raise ModelError(
                Problem("model.base", "its tokenizer does not say which characters a token stands for", fix)
            )
        self.sequence_length, self.overlength = sequence_length, overlength
        self._renderer = _Renderer(tokenizer) if tokenizer.chat_template else None
        self._backend = tokenizer.backend_tokenizer
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        self._bos, self._eos = _own_bos(tokenizer), tokenizer.eos_token_id

    def encode(self, samples: Sequence[Sample]) -> list[list[Encoded] | Rejected]:
        """Per sample its pieces (one, but for long texts), or why it is set apart."""
        rendered = self._render(samples)
        texts = [one.text for one in rendered if isinstance(one, _Rendered)]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, Rejected) else self._cut(sample, *self._mark(one, next(encodings)))
            for sample, one in zip(samples, rendered, strict=True)
        ]

    def _render(self, samples: Sequence[Sample]) -> list[_Rendered | Rejected]:
        rendered: list[_Rendered | Rejected | None] = [self._raw(sample) for sample in samples]
        waiting = [place for place, one in enumerate(rendered) if one is None]
        if waiting:
            assert self._renderer is not None
            found = self._renderer.render([_messages(samples[place]) for place in waiting])
            for place, one in zip(waiting, found, strict=True):
                rendered[place] = one
        return [one for one in rendered if one is not None]

    def _raw(self, sample: Sample) -> _Rendered | None:
        """What needs no chat template; None for what is rendered with one."""
        if isinstance(sample, Text):
            return _Rendered(sample.text, ((0, len(sample.text)),), raw=True)
        if self._renderer is not None:
            return None
        if isinstance(sample, Conversation):
            fix = "use an instruct model, or write the data as prompt and completion"
            raise ModelError(Problem("model.base", "it has no chat template, which messages need", fix))
        assert isinstance(sample, Completion)
        prompt = sample.prompt + sample.separator
        text = prompt + sample.completion
        return _Rendered(text, ((len(prompt), len(text)),), raw=True)

    def _mark(self, rendered: _Rendered, encoding: Any) -> tuple[list[int], np.ndarray]:
        ids: list[int] = encoding.ids
        mask = np.zeros(len(ids), np.bool_)
        for start, end in rendered.spans:
            mask[_first_token(encoding, start, rendered.text) : _first_token(encoding, end, rendered.text)] = True
        if not rendered.raw:
            return ids, mask
        if self._eos is None:
            fix = "use a model whose tokenizer names an eos_token"
            raise ModelError(Problem("model.base", "its tokenizer has no end-of-text token", fix))
        if self._bos is not None and ids[:1] != [self._bos]:
            ids, mask = [self._bos, *ids], np.concatenate(([False], mask))
        if ids[-1:] != [self._eos]:
            ids, mask = [*ids, self._eos], np.concatenate((mask, [True]))
        return ids, mask

    def _cut(self, sample: Sample, ids: list[int], mask: np.ndarray) -> list[Encoded] | Rejected:
        tokens, limit = np.array(ids, np.int64), self.sequence_length
        if not mask[1:].any():
            return Rejected("no-target", "no token is left to learn")
        if len(ids) <= limit:
            return [Encoded(tokens, mask)]
        if isinstance(sample, Text):
            # each piece begins with the last token of the one before: every token is predicted exactly once
            return [
                Encoded(tokens[start : start + limit], mask[start : start + limit])
                for start in range(0, len(ids) - 1, limit - 1)
            ]
        if self.overlength != TRUNCATE:
            return Rejected("overlength", f"{len(ids):,} tokens, {limit:,} fit")
        if not mask[1:limit].any():
            return Rejected("no-target", f"the answer begins after {limit:,} tokens and is cut off")
        return [Encoded(tokens[:limit], mask[:limit])]


class _Renderer:
    """Applies a chat template and finds the answers in what it writes."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        template = tokenizer.get_chat_template()
        self._template = re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", _dated, template)
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._specials = tuple({*added, *tokenizer.all_special_tokens})

    def render(self, conversations: list[list[Message]]) -> list[_Rendered | Rejected]:
        """One text per conversation with its answers' spans."""
        answers = [[i for i, message in enumerate(one) if message["role"] == "assistant"] for one in conversations]
        pairs = list(zip(conversations, answers, strict=True))
        whole = self._apply(conversations, generation_prompt=False)
        before = iter(self._apply([one[:i] for one, places in pairs for i in places], generation_prompt=True))
        inner = [(one, i) for one, places in pairs for i in places if i + 1 < len(one)]
        up_to = iter(self._apply([one[: i + 1] for one, i in inner], generation_prompt=False))
        rendered = []
        for (messages, places), text in zip(pairs, whole, strict=True):
            edges = [(i, next(before), next(up_to) if i + 1 < len(messages) else text) for i in places]
            rendered.append(self._answers(messages, text, edges))
        return rendered

    def _answers(
        self, messages: list[Message], text: str | Rejected, edges: list[tuple[int, str | Rejected, str | Rejected]]
    ) -> _Rendered | Rejected:
        """`edges`: per answer its place among the messages, the text before it and the text up to its end."""
        if isinstance(text, Rejected):
            return text
        spans = []
        for place, before, up_to in edges:
            for part in (before, up_to):
                if isinstance(part, Rejected):
                    return part
            assert isinstance(before, str) and isinstance(up_to, str)
            if not (text.startswith(up_to) and up_to.startswith(before)):
                found = "it with later messages differently" if place + 1 < len(messages) else "its generation prompt"
                detail = f"messages[{place}]: the chat template writes {found}, so what to learn cannot be told"
                return Rejected("unstable-template", detail)
            spans.append(self._span(text, len(before), len(up_to), messages[place]["content"].strip()))
        return _Rendered(text, tuple(spans), raw=False)

    def _span(self, text: str, start: int, end: int, content: str) -> tuple[int, int]:
        """An answer with its end-of-turn token, without what the template put before it or the space behind it."""
        turn = text[start:end].rstrip()
        body = turn
        if turn.endswith(self._specials):
            end = start + len(turn)
            body = max((turn.removesuffix(token) for token in self._specials if turn.endswith(token)), key=len).rstrip()
        inserted = body[: len(body) - len(content)] if body.endswith(content) else ""
        # an empty <think></think> or a role header; a mere space belongs to the answer's first token
        return start + (len(inserted) if inserted.strip() else 0), end

    def _apply(self, conversations: list[list[Message]], generation_prompt: bool) -> list[str | Rejected]:
        from jinja2 import TemplateError

        if not conversations:
            return []
        options: dict[str, Any] = {
            "chat_template": self._template,
            "tokenize": False,
            "add_generation_prompt": generation_prompt,
            "date_string": PINNED_DATE.strftime("%d %b %Y"),
        }
        try:
            return self._tokenizer.apply_chat_template(conversations, **options)
        except (TemplateError, TypeError, ValueError) as error:
            if len(conversations) == 1:
                detail = f"the chat template refuses it: {' '.join(str(error).split()):.160}"
                return [Rejected("template", detail)]
        half = len(conversations) // 2  # few rows are refused: halving finds them in few calls
        return [
            *self._apply(conversations[:half], generation_prompt),
            *self._apply(conversations[half:], generation_prompt),
        ]


def _messages(sample: Sample) -> list[Message]:
    if isinstance(sample, Completion):
        return [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.completion}]
    assert isinstance(sample, Conversation)
    return [message.as_dict() for message in sample.messages]


def _first_token(encoding: Any, position: int, text: str) -> int:
    """The first token that starts at or after character `position`; a token across the edge belongs to what is left."""
    for place in range(position, len(text)):
        token = encoding.char_to_token(place)  # None for a space that offsets leave out
        if token is not None:
            while token < len(encoding.ids) and encoding.token_to_chars(token)[0] < position:
                token += 1
            return token
    return len(encoding.ids)


def _own_bos(tokenizer: Any) -> int | None:
    """The BOS token that the tokenizer itself puts before a text; None when it puts none."""
    bos = tokenizer.bos_token_id
    adds = tokenizer("a")["input_ids"][:1] == [bos] != tokenizer("a", add_special_tokens=False)["input_ids"][:1]
    return bos if adds else None


def _dated(match: re.Match[str]) -> str:
    return f"'{PINNED_DATE.strftime(match[2])}'"
