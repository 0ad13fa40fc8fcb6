"""Lists of messages as people write them (OpenAI's and ShareGPT's form, with tools) into ours."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from shoal.rows.samples import Message, Rejected

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
"""A role as rows write it, OpenAI's `role` and ShareGPT's `from` alike -> ours."""
CALLING = frozenset({"function_call", "tool_call"})
"""ShareGPT's roles whose value is the call itself."""
DEEPEST = 32
"""Levels of nesting in tools and arguments; more is a mistake, and templates would recurse without end."""
KINDS = {
    list: "a list", dict: "an object", str: "a string", int: "a number", float: "a number", bool: "true or false",
    bytes: "bytes", type(None): "null",
}  # fmt: skip


class Unfit(ValueError):
    """Carries why a row is set apart out of nested reading; never leaves data/."""

    def __init__(self, cause: str, detail: str):
        super().__init__(cause, detail)
        self.rejected = Rejected(cause, detail)


def refuse(cause: str, detail: str) -> NoReturn:
    raise Unfit(cause, detail)


def kind(value: object) -> str:
    """What a value is, in a person's words."""
    return KINDS.get(type(value), type(value).__name__)


def conversation(value: object, place: str) -> tuple[Message, ...]:
    """A list of messages, all roles known and in an order that a conversation can have. Raises Unfit."""
    if not isinstance(value, list) or not value:
        refuse("wrong-type", f"`{place}` must be a list of messages that is not empty, not {kind(value)}")
    turns = tuple(_message(one, f"{place}[{number}]") for number, one in enumerate(value))
    for number, turn in enumerate(turns):
        before = turns[number - 1].role if number else "system"
        if turn.role == "tool" and before not in ("assistant", "tool"):
            refuse("role-order", f"{place}[{number}]: a tool answers, but no assistant called it")
    return turns


def check_answered(turns: tuple[Message, ...], place: str) -> None:
    """Raises Unfit where nobody asks, or the assistant never answers."""
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in spoken:
        refuse("empty-answer", f"no message of `{place}` is the assistant's")
    if spoken[0] != "user":
        refuse("role-order", f"`{place}`: the {spoken[0]} speaks before the user")


def tools(value: object, place: str) -> tuple[dict[str, Any], ...]:
    """The tools of a row in OpenAI's form; none when the field is null or empty. Raises Unfit."""
    if isinstance(value, str):
        value = _json(value, place) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        refuse("wrong-type", f"`{place}` is {kind(value)} and must be a list of tools, or such a list as JSON text")
    found = []
    for number, one in enumerate(value):
        if not isinstance(one, dict):
            refuse("wrong-type", f"`{place}[{number}]` is {kind(one)} and must be an object")
        _check_json(one, f"{place}[{number}]")
        found.append({"type": "function", "function": one} if "function" not in one and "name" in one else one)
    return tuple(found)


def string(row: Mapping[str, Any], key: str, place: str = "") -> str:
    """The string under `key`, which must be there. Raises Unfit."""
    value = row.get(key)
    if value is None:
        there = ", ".join(sorted(str(name) for name, other in row.items() if other is not None)) or "nothing"
        within = f"{place}: " if place else ""
        refuse("missing-field", f"{within}`{key}` is {'null' if key in row else 'missing'}; there is {there:.200}")
    if not isinstance(value, str):
        refuse("wrong-type", f"`{place}.{key}`".replace("`.", "`") + f" is {kind(value)} and must be a string")
    return value


def _message(value: object, place: str) -> Message:
    if not isinstance(value, Mapping):
        refuse("wrong-type", f"`{place}` is {kind(value)} and must be {{role, content}}")
    value = cast(Mapping[str, Any], value)
    role_key = "from" if value.get("role") is None and "from" in value else "role"
    content_key = "value" if value.get("content") is None and "value" in value else "content"
    written = string(value, role_key, place)
    role = ROLES.get(written)
    if role is None:
        refuse("unknown-role", f"{place}.{role_key} is {written!r:.40}")
    calls = _tool_calls(value, place)
    if written in CALLING:
        if calls:
            refuse("wrong-type", f"{place}: a {written} has no tool_calls of its own")
        calls = _written_calls(string(value, content_key, place), f"{place}.{content_key}")
    if calls and role != "assistant":
        refuse("wrong-type", f"{place}: the {role} cannot call tools")
    content = "" if written in CALLING else _content(value, content_key, place, bool(calls))
    if role == "assistant" and not content.strip() and not calls:
        refuse("empty-answer", f"{place}.{content_key} of the assistant is empty")
    return Message(
        role,
        content,
        learn=_weight(value, place),
        tool_calls=calls,
        name=_optional(value, "name", place),
        tool_call_id=_optional(value, "tool_call_id", place),
        reasoning=_reasoning(value, place) if role == "assistant" else None,
    )


def _content(message: Mapping[str, Any], key: str, place: str, calls: bool) -> str:
    value = message.get(key)
    if value is None and calls:
        return ""
    if not isinstance(value, list):
        return string(message, key, place)
    texts = []
    for number, part in enumerate(value):
        where = f"{place}.{key}[{number}]"
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            refuse("wrong-type", f"`{where}` is {kind(part)} and must be {{type: text, text}}")
        elif part.get("type", "text") != "text":
            refuse("wrong-type", f"`{where}` is of type {part.get('type')!r:.40}, and only text can be read")
        else:
            texts.append(string(part, "text", where))
    return "".join(texts)


def _weight(message: Mapping[str, Any], place: str) -> bool:
    value = message.get("weight")
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        refuse("wrong-type", f"`{place}.weight` is {value!r:.40} and must be 0 (not learnt) or 1")
    return value == 1


def _optional(message: Mapping[str, Any], key: str, place: str) -> str | None:
    return None if message.get(key) in (None, "") else string(message, key, place)


def _reasoning(message: Mapping[str, Any], place: str) -> str | None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        if (found := _optional(message, key, place)) is not None:
            return found
    return None


def _tool_calls(message: Mapping[str, Any], place: str) -> tuple[dict[str, Any], ...]:
    value, where = message.get("tool_calls"), f"{place}.tool_calls"
    if value is None and message.get("function_call") is not None:  # OpenAI's older form: one call
        value, where = [message["function_call"]], f"{place}.function_call"
    if isinstance(value, str):
        value = _json(value, where) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        refuse("wrong-type", f"`{where}` is {kind(value)} and must be a list")
    return tuple(_call(one, f"{where}[{number}]") for number, one in enumerate(value))


def _written_calls(text: str, place: str) -> tuple[dict[str, Any], ...]:
    """One call, or a list of calls, as JSON text."""
    value = _json(text, place)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        refuse("empty-answer", f"`{place}` calls nothing")
    return tuple(_call(one, place) for one in calls)


def _call(value: object, place: str) -> dict[str, Any]:
    """{name, arguments}, on its own or under `function`, in OpenAI's form with the arguments as an object."""
    if not isinstance(value, dict):
        refuse("wrong-type", f"`{place}` is {kind(value)} and must be {{function: {{name, arguments}}}}")
    function = value if value.get("function") is None else value["function"]
    if not isinstance(function, dict):
        refuse("wrong-type", f"`{place}.function` is {kind(function)} and must be {{name, arguments}}")
    name = string(function, "name", place)
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{place}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        refuse("wrong-type", f"`{place}.arguments` is {kind(arguments)} and must be an object, or one as JSON text")
    _check_json(arguments, f"{place}.arguments")
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    number = _optional(value, "id", place)
    return call if number is None else {"id": number, **call}


def _json(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        refuse("wrong-type", f"`{place}` is no JSON text: {error.msg} at column {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        refuse("wrong-type", f"`{place}` is no JSON text: {error!s:.80}")


def _check_json(value: object, place: str, depth: int = 0) -> None:
    if depth > DEEPEST:
        refuse("wrong-type", f"`{place:.60}...` is nested deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_json(inner, f"{place}.{key}", depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_json(inner, f"{place}[{number}]", depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        refuse("wrong-type", f"`{place}` is {kind(value)}, which JSON does not have")
    elif isinstance(value, float) and not math.isfinite(value):
        refuse("wrong-type", f"`{place}` is {value}, which JSON does not have")
