"""A sample as tokens, with exactly the tokens marked that the model shall learn to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.errors import ModelError, Problem
from shoal.rows.chat import Rendered, TrainOn, render
from shoal.rows.chat_template import PINNED_DATE, ChatTemplate
from shoal.rows.messages import Unfit
from shoal.rows.samples import Completion, Conversation, Message, Preference, Rejected, Sample, Text

__all__ = ["PINNED_DATE", "Encoded", "Encoder", "encode"]

TRUNCATE = "truncate"


@dataclass(frozen=True)
class Encoded:
    """One document."""

    input_ids: np.ndarray
    """int64[length]."""
    loss_mask: np.ndarray
    """bool[length]: True where the token is learnt (as a prediction from those before it)."""


def encode(
    sample: Sample,
    tokenizer: Any,
    sequence_length: int,
    overlength: str,
    train_on: TrainOn = "assistant",
    chat_template: str | None = None,
) -> list[Encoded] | Rejected:
    """One sample; see Encoder."""
    return Encoder(tokenizer, sequence_length, overlength, train_on, chat_template).encode([sample])[0]


class Encoder:
    """Encodes many samples at a time with a tokenizer of transformers.

    `train_on`: every answer, the last one, or all of a sample; a message with weight 0 is never learnt.
    `chat_template`: a Jinja template in place of the tokenizer's own. Raises ModelError when a template is broken, or
    when the tokenizer lacks what the samples need: offsets, an end-of-text token, a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int,
        overlength: str,
        train_on: TrainOn = "assistant",
        chat_template: str | None = None,
    ):
        if not getattr(tokenizer, "is_fast", False):
            fix = "use a model with a tokenizer.json"
            raise ModelError(
                Problem("model.base", "its tokenizer does not say which characters a token stands for", fix)
            )
        self.sequence_length, self.overlength = sequence_length, overlength
        self.train_on: TrainOn = train_on
        has_template = chat_template is not None or tokenizer.chat_template
        self._template = ChatTemplate(tokenizer, chat_template) if has_template else None
        self._backend = tokenizer.backend_tokenizer
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        self._bos, self._eos = _own_bos(tokenizer), tokenizer.eos_token_id

    def encode(self, samples: Sequence[Sample]) -> list[list[Encoded] | Rejected]:
        """Per sample its pieces (one, but for long texts), or why it is set apart."""
        rendered = [self._render(sample) for sample in samples]
        texts = [one.text for one in rendered if isinstance(one, Rendered)]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [
            one if isinstance(one, Rejected) else self._cut(sample, *self._mark(one, next(encodings)))
            for sample, one in zip(samples, rendered, strict=True)
        ]

    def _render(self, sample: Sample) -> Rendered | Rejected:
        match sample:
            case Text(text):
                return Rendered(text, ((0, len(text)),), raw=True)
            case Completion(prompt, completion, separator) if self._template is None:
                text = prompt + separator + completion
                start = 0 if self.train_on == "all" else len(text) - len(completion)
                return Rendered(text, ((start, len(text)),), raw=True)
            case Completion(prompt, completion):
                sample = Conversation((Message("user", prompt), Message("assistant", completion)))
            case Preference():
                raise AssertionError("the planner refuses preferences until a method learns from them")
        if self._template is None:
            fix = "use an instruct model, name a template in data.chat_template, or write prompt and completion as strings"
            raise ModelError(Problem("model.base", "it has no chat template, which messages need", fix))
        try:
            return render(self._template, sample, self.train_on)
        except Unfit as unfit:
            return unfit.rejected

    def _mark(self, rendered: Rendered, encoding: Any) -> tuple[np.ndarray, np.ndarray]:
        """int64 tokens and bool mask."""
        ids = np.array(encoding.ids, np.int64)
        mask = np.zeros(len(ids), np.bool_)
        for start, end in rendered.spans:
            first = _first_token(encoding, start, rendered.text) if start else 0
            mask[first : _first_token(encoding, end, rendered.text)] = True
        if not rendered.raw:
            return ids, mask
        if self._eos is None:
            fix = "use a model whose tokenizer names an eos_token"
            raise ModelError(Problem("model.base", "its tokenizer has no end-of-text token", fix))
        if self._bos is not None and (not len(ids) or ids[0] != self._bos):
            ids, mask = np.concatenate(([self._bos], ids)), np.concatenate(([False], mask))
        if not len(ids) or ids[-1] != self._eos:
            ids, mask = np.concatenate((ids, [self._eos])), np.concatenate((mask, [True]))
        return ids, mask

    def _cut(self, sample: Sample, tokens: np.ndarray, mask: np.ndarray) -> list[Encoded] | Rejected:
        limit = self.sequence_length
        if not mask[1:].any():
            return Rejected("no-target", "no token is left to learn")
        if len(tokens) <= limit:
            return [Encoded(tokens, mask)]
        if isinstance(sample, Text):
            # each piece begins with the last token of the one before: every token is predicted exactly once
            return [
                Encoded(tokens[start : start + limit], mask[start : start + limit])
                for start in range(0, len(tokens) - 1, limit - 1)
            ]
        if self.overlength != TRUNCATE:
            return Rejected("overlength", f"{len(tokens):,} tokens, {limit:,} fit")
        if not mask[1:limit].any():
            return Rejected("no-target", f"the answer begins after {limit:,} tokens and is cut off")
        return [Encoded(tokens[:limit], mask[:limit])]


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
