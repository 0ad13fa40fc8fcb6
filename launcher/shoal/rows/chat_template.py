"""A chat template: text out of messages, by transformers' own rendering, with its mistakes told apart from the rows'."""

import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NoReturn, cast

from shoal.errors import ModelError, Problem
from shoal.rows.messages import refuse

PINNED_DATE = date(2024, 7, 26)
"""What templates take as today: tokens must not depend on the day of preparation. Llama's own default."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ANSWER_MARK, NEXT_MARK = "shoalanswermark7c1f", "shoalnextmark5d2e"
"""Stand where a content goes, to see what a template writes around it."""
ROW_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What a template's expressions raise, besides jinja2's own errors, on values that they did not expect."""

Turn = dict[str, Any]
Span = tuple[int, int]
"""Characters (start, end)."""


class ChatTemplate:
    """A chat template: the tokenizer's own, or the text given in its place.

    Raises ModelError when it is broken for every conversation.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None):
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


def _dated(match: re.Match[str]) -> str:
    return f"'{PINNED_DATE.strftime(match[2])}'"
