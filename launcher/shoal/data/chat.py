"""What a chat template makes of a conversation, and which characters of it are the answers to learn.

Few chat templates say which part is the assistant's, so that is derived: what the template writes for the messages
before an answer (with the generation prompt) must be a beginning of the whole, and so must what it writes for those up
to it; an answer is what lies between. Templates that write an answer anew once others follow (thoughts are dropped) are
read by marks put in place of contents. `{% generation %}` blocks, where there are any, are taken at their word.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NoReturn, cast

from shoal.data.messages import Unfit, refuse
from shoal.data.samples import Conversation, Message
from shoal.errors import ModelError, Problem

TrainOn = Literal["assistant", "last", "all"]
PINNED_DATE = date(2024, 7, 26)
"""What templates take as today: tokens must not depend on the day of preparation. Llama's own default."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ANSWER_MARK, NEXT_MARK = "shoalanswermark7c1f", "shoalnextmark5d2e"
"""Stand where a content goes, to see what a template writes around it."""
ROW_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a template's expressions raise, besides jinja2's own errors, on values that it did not expect."""

Turn = dict[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """Text to tokenise; `spans` are the characters (start, end) to learn."""

    text: str
    spans: tuple[Span, ...]
    raw: bool = False
    """Not from a chat template: the tokenizer's own BOS goes before it and EOS, to be learnt, behind it."""


class Chat:
    """A chat template: the tokenizer's own, or the text given in its place.

    Raises ModelError when it is broken for every conversation.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, train_on: TrainOn):
        self._train_on = train_on
        self._where = "model.base" if chat_template is None else "data.chat_template"
        given = (chat_template, chat_template)
        if chat_template is None:
            try:
                given = (tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}]))
            except ValueError as error:  # several templates, none of them the default
                self._broken(f"its chat template cannot be chosen ({' '.join(str(error).split()):.120})")
        self._plain, self._tooled = (
            re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", _dated, one or "") for one in given
        )
        self._options = {**tokenizer.special_tokens_map, "date_string": PINNED_DATE.strftime("%d %b %Y")}
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._specials = frozenset({*added, *tokenizer.all_special_tokens})
        self._special_lengths = sorted({len(token) for token in self._specials})
        self._try()

    def render(self, sample: Conversation) -> Rendered:
        """The whole conversation with the spans to learn. Raises Unfit where these cannot be told."""
        answers = [place for place, message in enumerate(sample.messages) if message.role == "assistant"]
        writing = _Writing(self, sample)
        if self._train_on == "all":
            left = [place for place in answers if not sample.messages[place].learn]
            return Rendered(writing.text, _between(writing.spans(left, answers), len(writing.text)))
        wanted = answers[-1:] if self._train_on == "last" else [place for place in answers if place >= sample.given]
        wanted = [place for place in wanted if sample.messages[place].learn]
        if not wanted:
            refuse("no-target", "every answer to learn has weight 0")
        return Rendered(writing.text, tuple(writing.spans(wanted, answers)))

    def apply(self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool = False) -> str:
        """The template's text, with the generation prompt where `prompt`. Raises Unfit where the template refuses."""
        return self._apply(turns, tools, prompt, marked=False)[0]

    def apply_marked(self, turns: Sequence[Turn], tools: Sequence[Turn]) -> tuple[str, list[Span]] | None:
        """The text and its generation blocks; None for a template without any."""
        template = self._tooled if tools else self._plain
        return self._apply(turns, tools, False, marked=True) if GENERATION.search(template) else None

    def special_end(self, text: str) -> str:
        """The special token that `text` ends in; empty for none."""
        found = (text[-length:] for length in self._special_lengths)
        return next((token for token in found if token in self._specials), "")

    def until_special(self, text: str) -> int:
        """Where the first special token of `text` ends; 0 without one."""
        return next((end for end in range(1, len(text) + 1) if self.special_end(text[:end])), 0)

    def _apply(
        self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool, marked: bool
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError

        try:
            return self._run(turns, tools, prompt, marked)
        except (TemplateError, *ROW_ERRORS) as error:
            refuse("template", f"the chat template refuses it: {' '.join(str(error).split()):.160}")

    def _run(
        self, turns: Sequence[Turn], tools: Sequence[Turn], prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, blocks = cast(
            tuple[list[str], list[list[Span]]],
            render_jinja_template(
                conversations=[list(turns)],
                tools=list(tools) or None,
                chat_template=self._tooled if tools else self._plain,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marked,
                **self._options,
            ),
        )
        return texts[0], blocks[0] if marked else []

    def _try(self) -> None:
        """Tells a template that is broken from one that refuses a row: by one question and its answer."""
        from jinja2 import TemplateError, TemplateSyntaxError

        turns = [{"role": "user", "content": NEXT_MARK}, {"role": "assistant", "content": ANSWER_MARK}]
        try:
            text, _ = self._run(turns, ())
        except TemplateSyntaxError as error:
            self._broken(f"the chat template is not valid Jinja: {error.message} in line {error.lineno}")
        except (TemplateError, *ROW_ERRORS) as error:
            if type(error) is TemplateError:  # the template's own raise_exception: other conversations may be fine
                return
            self._broken(f"the chat template cannot write a question and its answer: {error!s:.160}")
        if ANSWER_MARK not in text:
            self._broken("the chat template does not write what the assistant says")

    def _broken(self, what: str) -> NoReturn:
        own = self._where == "model.base"
        fix = "name a template of your own in data.chat_template" if own else "correct the template"
        raise ModelError(Problem(self._where, what, fix))


class _Writing:
    """One conversation as the template writes it."""

    def __init__(self, chat: Chat, sample: Conversation):
        self._chat, self._messages, self._tools = chat, sample.messages, sample.tools
        self._turns = [message.as_dict() for message in sample.messages]
        self._marked = chat.apply_marked(self._turns, self._tools)
        self.text = self._apply(self._turns) if self._marked is None else self._marked[0]

    def _apply(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        return self._chat.apply(turns, self._tools, prompt)

    def spans(self, wanted: Sequence[int], answers: Sequence[int]) -> list[Span]:
        """Where the `wanted` of all `answers` (places among the messages) stand in the text. Raises Unfit."""
        if self._marked is None:
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
        if place + 1 < len(self._turns):
            up_to = self._apply(self._turns[: place + 1])
            end = len(up_to) if self.text.startswith(up_to) else self._end(place)
        if end < start:
            self._unstable(place, "its generation prompt")
        body, end = self._body(place, start, end)
        inserted = self._inserted(place, body)
        # an empty <think></think> or a role header; a mere space belongs to the answer's first token
        return start + (len(inserted) if inserted.strip() else 0), end

    def _body(self, place: int, start: int, end: int) -> tuple[str, int]:
        """A turn without what ends it, and the end of its end-of-turn token (or of all of it, where there is none)."""
        turn = self.text[start:end].rstrip()
        body = turn
        while token := self._chat.special_end(body):
            body = body[: -len(token)].rstrip()
        if body == turn:
            return body, end
        if self._messages[place].tool_calls:  # a call may itself end in special tokens, and all of them are written
            return body, start + len(turn)
        return body, start + len(body) + self._chat.until_special(turn[len(body) :])  # no end of text behind it

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
        if not (shared and real.endswith(between) and self.text.startswith(real)):
            self._unstable(place, "it with later messages differently")
        return len(real) - len(between) + shared

    def _shared_end(self, end_of_turn: str, between: str) -> int:
        """How much of what follows an answer ends it: the same at the end of a text and before another message."""
        if between.startswith(end_of_turn):
            return len(end_of_turn)
        shared = self._chat.until_special(end_of_turn)  # behind which a text may end otherwise, as with an end of text
        return shared if between.startswith(end_of_turn[:shared]) else 0

    def _unstable(self, place: int, found: str) -> NoReturn:
        detail = f"messages[{place}]: the chat template writes {found}, so what to learn cannot be told"
        refuse("unstable-template", detail)


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


def _dated(match: re.Match[str]) -> str:
    return f"'{PINNED_DATE.strftime(match[2])}'"
