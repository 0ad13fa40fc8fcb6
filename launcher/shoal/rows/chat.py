"""What a chat template makes of a conversation, and which characters of it are the answers to learn.

Few chat templates say which part is the assistant's, so that is derived: what the template writes for the messages
before an answer (with the generation prompt) must be a beginning of the whole, and so must what it writes for those up
to it; an answer is what lies between. Templates that write an answer anew once others follow (thoughts are dropped) are
read by marks put in place of contents. `{% generation %}` blocks, where there are any, are taken at their word.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from shoal.rows.chat_template import ANSWER_MARK, NEXT_MARK, ChatTemplate, Span, Turn
from shoal.rows.messages import Unfit, refuse
from shoal.rows.samples import Conversation, Message

TrainOn = Literal["assistant", "last", "all"]


@dataclass(frozen=True)
class Rendered:
    """Text to tokenise; `spans` are the characters (start, end) to learn."""

    text: str
    spans: tuple[Span, ...]
    raw: bool = False
    """Not from a chat template: the tokenizer's own BOS goes before it and EOS, to be learnt, behind it."""


def render(template: ChatTemplate, sample: Conversation, train_on: TrainOn) -> Rendered:
    """The whole conversation with the spans to learn. Raises Unfit where these cannot be told."""
    turns = [message.as_dict() for message in sample.messages]
    try:
        return _rendered(template, sample, turns, train_on)
    except Unfit as unfit:
        if unfit.rejected.cause != "template" or not any(message.tool_calls for message in sample.messages):
            raise
        try:  # some templates, such as DeepSeek's, take arguments as JSON text
            return _rendered(template, sample, [_with_text_arguments(turn) for turn in turns], train_on)
        except Unfit:
            raise unfit from None


def _rendered(template: ChatTemplate, sample: Conversation, turns: list[Turn], train_on: TrainOn) -> Rendered:
    answers = [place for place, message in enumerate(sample.messages) if message.role == "assistant"]
    writing = _Writing(template, sample, turns)
    _check_written(sample, writing.text)
    if train_on == "all":
        left = [place for place in answers if not sample.messages[place].learn]
        return Rendered(writing.text, _between(writing.spans(left, answers), len(writing.text)))
    wanted = answers[-1:] if train_on == "last" else [place for place in answers if place >= sample.given]
    wanted = [place for place in wanted if sample.messages[place].learn]
    if not wanted:
        refuse("no-target", "every answer to learn has weight 0")
    return Rendered(writing.text, tuple(writing.spans(wanted, answers)))


class _Writing:
    """One conversation as the template writes it."""

    def __init__(self, template: ChatTemplate, sample: Conversation, turns: list[Turn]):
        self._template, self._messages, self._tools, self._turns = template, sample.messages, sample.tools, turns
        self._ending = ""
        """What ends an answer of this conversation, once one was found: spares a rendering for each of the others."""
        self._marked = template.apply_marked(self._turns, self._tools)
        self.text = self._apply(self._turns) if self._marked is None else self._marked[0]

    def _apply(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        return self._template.apply(turns, self._tools, prompt)

    def spans(self, wanted: Sequence[int], answers: Sequence[int]) -> list[Span]:
        """Where the `wanted` of all `answers` (places among the messages) stand in the text. Raises Unfit."""
        if self._marked is None or not wanted:
            return [self._span(place) for place in wanted]
        blocks = self._marked[1]
        if len(blocks) == len(answers):
            return [blocks[answers.index(place)] for place in wanted]
        if not blocks or list(wanted) != list(answers):
            what = f"the chat template marks {len(blocks)} pieces for {len(answers)} answers"
            refuse("unstable-template", f"{what}, so what to learn cannot be told")
        return blocks

    def _span(self, place: int) -> Span:
        before = self._apply(self._turns[:place], prompt=True)
        if not self.text.startswith(before):
            self._unstable(place, "its generation prompt")
        start, end = len(before), len(self.text)
        message = self._messages[place]
        plain = not message.tool_calls and not message.reasoning and self.text.startswith(message.content, start)
        after = start + len(message.content)
        if plain and self._ending and self.text.startswith(self._ending, after):
            return start, after + len(self._ending)
        if place + 1 < len(self._turns):
            up_to = self._apply(self._turns[: place + 1])
            end = len(up_to) if self.text.startswith(up_to) else self._end(place)
        if end < start:
            self._unstable(place, "its generation prompt")
        body, end = self._body(place, start, end)
        if any(call["function"]["name"] not in body for call in message.tool_calls):
            refuse("template", f"messages[{place}]: the chat template does not write tool calls")
        if plain and self._template.special_end(self.text[after:end]):
            self._ending = self.text[after:end]
        inserted = self._inserted(place, body)
        # an empty <think></think> or a role header; a mere space belongs to the answer's first token
        return start + (len(inserted) if inserted.strip() else 0), end

    def _body(self, place: int, start: int, end: int) -> tuple[str, int]:
        """A turn without what ends it, and the end of its end-of-turn token (or of all of it, where there is none)."""
        turn = self.text[start:end].rstrip()
        body = turn
        while token := self._template.special_end(body):
            body = body[: -len(token)].rstrip()
        if body == turn:
            return body, end
        if self._messages[place].tool_calls:  # a call may itself end in special tokens, and all of them are written
            return body, start + len(turn)
        return body, start + len(body) + self._template.until_special(turn[len(body) :])  # no end of text behind it

    def _inserted(self, place: int, body: str) -> str:
        """The beginning of a turn that the template put before what the row holds."""
        message = self._messages[place]
        content = message.content.strip()
        if content and body.endswith(content) and not message.reasoning and not message.tool_calls:
            return body[: len(body) - len(content)]
        before = self._apply(self._turns[:place], prompt=True)
        alone, _ = _around(self._apply([*self._turns[:place], _answer(ANSWER_MARK)]), ANSWER_MARK)
        inserted = alone[len(before) :] if alone.startswith(before) else ""
        if body.startswith(inserted):
            return inserted
        if inserted.strip() and before == self._apply(self._turns[:place]):
            self._unstable(place, "a header that is no generation prompt")
        return (
            ""  # what it puts before an answer without thoughts is not there: all that follows the prompt is the row's
        )

    def _end(self, place: int) -> int:
        """Where an answer ends that is written otherwise when it is the last: before the header of what follows it."""
        following = self._turns[place + 1]
        if following["role"] == "assistant":
            self._unstable(place, "it with later messages differently")
        earlier, marked = self._turns[:place], {**following, "content": NEXT_MARK}
        try:
            _, end_of_turn = _around(self._apply([*earlier, _answer(ANSWER_MARK)]), ANSWER_MARK)
            _, behind = _around(self._apply([*earlier, _answer(ANSWER_MARK), marked]), ANSWER_MARK)
            between, _ = _around(behind, NEXT_MARK)
            real, _ = _around(self._apply([*self._turns[: place + 1], marked]), NEXT_MARK)
        except Unfit:
            self._unstable(place, "it with later messages differently")
        shared = self._shared_end(end_of_turn, between)
        if not (shared is not None and real.endswith(between) and self.text.startswith(real)):
            self._unstable(place, "it with later messages differently")
        return len(real) - len(between) + shared

    def _shared_end(self, end_of_turn: str, between: str) -> int | None:
        """How many characters end an answer, the same at the end of a text and before another message; None: unequal."""
        if between.startswith(end_of_turn):
            return len(end_of_turn)
        shared = self._template.until_special(
            end_of_turn
        )  # behind which a text may end otherwise, as with an end of text
        return shared if shared and between.startswith(end_of_turn[:shared]) else None

    def _unstable(self, place: int, found: str) -> NoReturn:
        detail = f"messages[{place}]: the chat template writes {found}, so what to learn cannot be told"
        refuse("unstable-template", detail)


def _check_written(sample: Conversation, text: str) -> None:
    """Raises Unfit where the template leaves out what only some templates know: nothing else would tell."""
    for tool in sample.tools:
        name = (tool.get("function") or tool).get("name")
        if isinstance(name, str) and name not in text:
            refuse("template", f"the chat template does not write the row's tools ({name:.40})")
    for number, message in enumerate(sample.messages):
        for call in message.tool_calls:
            if call["function"]["name"] not in text:
                refuse("template", f"messages[{number}]: the chat template does not write tool calls")
    last = sample.messages[-1]
    if last.role == "assistant":  # an earlier thought may well be left out
        thought = last.reasoning or (last.content.split("</think>")[0] if "</think>" in last.content else "")
        if thought.replace("<think>", "").strip() not in text:
            refuse("template", f"messages[{len(sample.messages) - 1}]: the chat template leaves out what was thought")


def _with_text_arguments(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _answer(content: str) -> Turn:
    return Message("assistant", content).as_dict()


def _around(text: str, mark: str) -> tuple[str, str]:
    """What stands before and behind a mark; raises Unfit unless it is there once."""
    parts = text.split(mark)
    if len(parts) != 2:
        refuse("unstable-template", f"the chat template writes a message {len(parts) - 1} times")
    return parts[0], parts[1]


def _between(spans: Iterable[Span], length: int) -> tuple[Span, ...]:
    """What `spans` leave of `length` characters."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return tuple((start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end)
