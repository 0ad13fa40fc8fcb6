"""What a row means: tells the format of rows and turns one row into a sample, or says why not."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from shoal.errors import DataError, Problem
from shoal.rows import messages
from shoal.rows.messages import Unfit, refuse, string
from shoal.rows.samples import Completion, Conversation, Message, Preference, Rejected, Sample, Text, fingerprint
from shoal.spec.job import Format

__all__ = [
    "FIELDS",
    "FORMATS",
    "REMEDIES",
    "Completion",
    "Conversation",
    "Format",
    "Message",
    "Preference",
    "Rejected",
    "Sample",
    "Text",
    "check_columns",
    "detect",
    "fingerprint",
    "parse",
]

FORMATS: tuple[Format, ...] = get_args(Format)
TELLING: tuple[tuple[Format, tuple[str, ...]], ...] = (
    ("preference", ("chosen", "rejected")),
    ("messages", ("messages",)),
    ("messages", ("conversations",)),
    ("instruction", ("instruction", "output")),
    ("prompt-completion", ("prompt", "completion")),
    ("text", ("text",)),
)
"""The fields that tell a row's format, the first that fit."""
FIELDS = frozenset(
    {
        "messages", "conversations", "tools", "functions", "system", "instruction", "input", "output", "history",
        "prompt", "completion", "text", "chosen", "rejected",
    }
)  # fmt: skip
"""Every field that a format reads: the names on our side of data.columns."""

REMEDIES = {
    "malformed": "correct or remove these lines",
    "overlong-line": "split these rows into several",
    "invalid-utf8": "save the file as UTF-8",
    "missing-field": "fill the field, set data.format to the one that these rows have, or name its column in data.columns",
    "other-format": "keep rows of one format in a file, and name each file in data.train with a format of its own",
    "wrong-type": "write strings, messages as a list of {role, content}, and weights as 0 or 1",
    "unknown-role": "use the roles system, user, assistant and tool",
    "role-order": "let each conversation begin with an optional system message and then a user message, and let tools "
    "answer an assistant",
    "empty-prompt": "fill or remove these rows",
    "empty-answer": "fill or remove these rows: nothing could be learnt from them",
    "empty-text": "remove these rows",
    "same-answers": "remove these rows: nothing tells the chosen answer from the rejected one",
    "overlength": "raise data.sequence_length, or set data.overlength: truncate",
    "no-target": "raise data.sequence_length if the prompt alone fills the row; remove rows whose answers all have weight 0",
    "template": "change the conversation to what the model's chat template takes",
    "unstable-template": "split each conversation into rows that end with one answer, or name a chat template that "
    "writes each answer as it stands in the row in data.chat_template",
}
"""Every cause of a rejection, and what a person changes about it."""

_ELSEWHERE = {
    "question": "name them in data.columns: {prompt: question, completion: answer}",
    "query": "name them in data.columns: {prompt: query, completion: response}",
    "response": "name them in data.columns, such as {prompt: instruction, completion: response}",
    "chosen": "preference rows have `chosen` and `rejected`, and `prompt` where these are strings",
    "content": "name it in data.columns: {text: content}",
}

Row = Mapping[str, Any]


def check_columns(columns: Mapping[str, str], where: str = "data.columns") -> None:
    """Raises DataError where a mapping names a field that no format reads, which would silently do nothing."""
    problems = []
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            fix = f"write `{theirs}: {ours}`" if theirs in FIELDS else f"use one of {', '.join(sorted(FIELDS))}"
            problems.append(Problem(f"{where}.{ours}", "is no field that a format reads", fix))
    if problems:
        raise DataError(*problems)


def detect(
    rows: Iterable[Row | Rejected], where: str = "data.train", columns: Mapping[str, str] | None = None
) -> Format:
    """The format that most of these first rows have; raises DataError when none is recognised or there are no rows."""
    keys: dict[str, None] = {}
    votes, weak = dict.fromkeys(FORMATS, 0), dict.fromkeys(FORMATS, 0)
    for row in rows:
        if isinstance(row, Rejected):
            continue
        keys.update(dict.fromkeys(map(str, row)))
        mapped = _mapped(row, columns or {}, strict=False)
        if (name := _format_of(mapped)) is not None:
            votes[name] += 1
        elif (name := _format_of(dict.fromkeys(mapped, ""))) is not None:
            weak[name] += 1
    for counted in (votes, weak):
        best = max(FORMATS, key=lambda name: counted[name])
        if counted[best]:
            return best
    if not keys:
        raise DataError(Problem(where, "no readable row was found", "check that the location holds rows"))
    advice = [text for key, text in _ELSEWHERE.items() if key in keys]
    known = "; ".join(f"{name}: {' + '.join(fields)}" for name, fields in TELLING)
    what = f"rows have the fields {', '.join(sorted(keys)[:12])}, which is no format Shoal reads"
    raise DataError(Problem(where, what, advice[0] if advice else f"use one of {known}"))


def parse(row: Row, format: Format, columns: Mapping[str, str] | None = None) -> Sample | Rejected:
    """One row as a sample. Fields that the format does not name are ignored.

    `columns`: our name of a field -> theirs, where dots lead into objects and numbers into lists.
    """
    try:
        if columns:
            row = _mapped(row, columns, strict=True)
        sample = _PARSERS[format](row)
        fingerprint(sample)  # tokenizers cannot take lone surrogates, which JSON's \ud800 and bad bytes both become
    except Unfit as unfit:
        other = _format_of(row) if unfit.rejected.cause == "missing-field" else None
        if other is not None and other != format:
            return Rejected("other-format", f"the row reads as {other}, not as {format} ({unfit.rejected.detail})")
        return unfit.rejected
    except UnicodeEncodeError:
        return Rejected("invalid-utf8", "a string holds bytes or surrogates that are not text")
    return sample


def _format_of(row: Row) -> Format | None:
    return next((name for name, fields in TELLING if all(row.get(field) is not None for field in fields)), None)


def _mapped(row: Row, columns: Mapping[str, str], strict: bool) -> Row:
    """The row under our names. Raises Unfit, when `strict`, for a column that the row lacks."""
    taken = dict(row)
    for ours, theirs in columns.items():
        value, found = _column(row, theirs)
        if found:
            taken[ours] = value
        elif strict:
            there = ", ".join(sorted(map(str, row))) or "nothing"
            refuse("missing-field", f"`{theirs}` (data.columns.{ours}) is missing; the row has {there:.200}")
    return taken


def _column(row: Row, path: str) -> tuple[Any, bool]:
    """The value under a dotted path and whether it is there; a column whose own name has dots comes first."""
    if path in row:
        return row[path], True
    value: Any = row
    for step in path.split("."):
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None, False
    return value, True


def _turns_of(row: Row) -> tuple[tuple[Message, ...], str]:
    """The row's own list of messages and the field that holds it; a system prompt beside it comes first."""
    field = "conversations" if row.get("messages") is None and row.get("conversations") is not None else "messages"
    if row.get(field) is None:
        string(row, field)  # says what is there instead
    turns = messages.conversation(row[field], field)
    system = _optional(row, "system")
    return ((Message("system", system), *turns) if system.strip() else turns), field


def _tools(row: Row) -> tuple[dict[str, Any], ...]:
    field = "functions" if row.get("tools") is None else "tools"
    return messages.tools(row.get(field), field)


def _optional(row: Row, key: str) -> str:
    return "" if row.get(key) is None else string(row, key)


def _conversation(row: Row) -> Conversation:
    turns, field = _turns_of(row)
    messages.check_answered(turns, field)
    return Conversation(turns, _tools(row))


def _instruction(row: Row) -> Completion | Conversation:
    instruction, output, extra = string(row, "instruction"), string(row, "output"), _optional(row, "input")
    prompt = "\n\n".join(part for part in (instruction, extra) if part.strip())
    if not prompt:
        refuse("empty-prompt", "`instruction` and `input` are empty")
    if not output.strip():
        refuse("empty-answer", "`output` is empty")
    system, earlier = _optional(row, "system"), _history(row.get("history"))
    if not earlier and not system.strip():
        return Completion(prompt, output, separator="\n\n")
    first = (Message("system", system),) if system.strip() else ()
    return Conversation((*first, *earlier, Message("user", prompt), Message("assistant", output)))


def _history(value: object) -> tuple[Message, ...]:
    """Earlier turns as pairs of a question and its answer."""
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        refuse("wrong-type", f"`history` is {messages.kind(value)} and must be a list of [question, answer]")
    turns: list[Message] = []
    for number, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            refuse("wrong-type", f"`history[{number}]` must be [question, answer], both strings")
        if not pair[1].strip():
            refuse("empty-answer", f"history[{number}]: the answer is empty")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)


def _completion(row: Row) -> Completion | Conversation:
    if not isinstance(row.get("prompt"), list) and not isinstance(row.get("completion"), list):
        prompt, completion = string(row, "prompt"), string(row, "completion")
        if not completion.strip():
            refuse("empty-answer", "`completion` is empty")
        return Completion(prompt, completion)
    prompt, completion = _side(row, "prompt", "user"), _side(row, "completion", "assistant")
    messages.check_answered((*prompt, *completion), "prompt + completion")
    if all(turn.role != "assistant" for turn in completion):
        refuse("empty-answer", "no message of `completion` is the assistant's")
    return Conversation((*prompt, *completion), _tools(row), given=len(prompt))


def _side(row: Row, field: str, role: str) -> tuple[Message, ...]:
    """One field as messages, whether it holds a string, one message or a list of them."""
    value = row.get(field)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return messages.conversation(value, field)
    text = string(row, field)
    if role == "assistant" and not text.strip():
        refuse("empty-answer", f"`{field}` is empty")
    return (Message(role, text),)


def _text(row: Row) -> Text:
    text = string(row, "text")
    return Text(text) if text.strip() else refuse("empty-text", "`text` is empty")


def _preference(row: Row) -> Preference:
    chosen, rejected = _side(row, "chosen", "assistant"), _side(row, "rejected", "assistant")
    if chosen[0].role == rejected[0].role == "assistant":
        prompt = _asked(row)
    else:  # both hold the whole conversation
        common = 0
        while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
            common += 1
        if chosen == rejected:
            refuse("same-answers", "`chosen` and `rejected` are equal")
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[0].role != "assistant":
            refuse("empty-answer", f"`{name}` has no answer of the assistant's behind what both share")
        messages.check_answered((*prompt, *side), f"prompt + {name}")
    if [turn.as_dict() for turn in chosen] == [turn.as_dict() for turn in rejected]:
        refuse("same-answers", "`chosen` and `rejected` are equal")
    return Preference(prompt, chosen, rejected, _tools(row))


def _asked(row: Row) -> tuple[Message, ...]:
    """What was asked, in whichever field a preference row holds it."""
    if row.get("prompt") is not None:
        turns = _side(row, "prompt", "user")
    elif row.get("instruction") is not None:
        parts = (string(row, "instruction"), _optional(row, "input"))
        turns = (Message("user", "\n\n".join(part for part in parts if part.strip())),)
    elif row.get("messages") is not None or row.get("conversations") is not None:
        return _turns_of(row)[0]
    else:
        string(row, "prompt")  # says what is there instead
        turns = ()
    if not any(turn.content.strip() for turn in turns):
        refuse("empty-prompt", "the prompt is empty")
    system = _optional(row, "system")
    return (Message("system", system), *turns) if system.strip() else turns


_PARSERS = {
    "messages": _conversation,
    "instruction": _instruction,
    "prompt-completion": _completion,
    "text": _text,
    "preference": _preference,
}
