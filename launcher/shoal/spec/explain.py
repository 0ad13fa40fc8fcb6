"""pydantic's errors as answers: one sentence for each field, with what was given, what is allowed, and the nearest name."""

import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from shoal.errors import Problem
from shoal.spec import foreign, foreign_values, secrets
from shoal.spec.document import Document, Path, dotted, sort_of
from shoal.spec.schema import Kind, schema

Shape = dict[str, Any]
"""A JSON Schema, or the part of one that a field has."""


class Fields:
    """What may be written in one kind of file, asked by path; read from its JSON Schema."""

    def __init__(self, kind: Kind):
        self.kind: Kind = kind
        self.schema: Shape = schema(kind)

    def resolve(self, shape: Shape) -> Shape:
        """The shape itself, with a reference followed; `description` beside a reference is kept."""
        if "$ref" not in shape:
            return shape
        own = {key: value for key, value in shape.items() if key != "$ref"}
        return {**self.schema["$defs"][shape["$ref"].rsplit("/", 1)[1]], **own}

    def at(self, path: Path) -> Shape:
        """The shape of the field at `path`; `{}` when there is none, or none is prescribed."""
        shape = self.schema
        for part in path:
            alternatives = [self.resolve(option) for option in options(shape)]
            if isinstance(part, int):
                shape = next((option["items"] for option in alternatives if "items" in option), {})
            else:
                named = [option["properties"][part] for option in alternatives if part in option.get("properties", {})]
                free = [option["additionalProperties"] for option in alternatives if "additionalProperties" in option]
                free += [one for option in alternatives for one in option.get("patternProperties", {}).values()]
                shape = self.resolve(next(iter(named + [one for one in free if isinstance(one, dict)]), {}))
        return shape

    def keys(self, path: Path) -> list[str]:
        return [key for option in options(self.at(path)) for key in self.resolve(option).get("properties", {})]

    def all(self, path: Path = ()) -> Iterator[Path]:
        """The path of every field, sections before what is in them."""
        for key in self.at(path).get("properties", {}):
            yield (*path, key)
            yield from self.all((*path, key))


def options(shape: Shape) -> list[Shape]:
    """The alternatives of a union without `null`, or the shape alone."""
    return [option for option in shape.get("anyOf", [shape]) if option.get("type") != "null"]


def problems(errors: list[ErrorDetails], document: Document, kind: Kind) -> Iterator[Problem]:
    """One problem for each field that `errors` speak of, in the order of the file's lines."""
    fields = Fields(kind)
    groups: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_path(error, document.value), []).append(error)
    for path, group in sorted(
        groups.items(), key=lambda item: document.line(item[0]) or document.line(item[0][:-1]) or 0
    ):
        # A union reports the whole value for each other alternative: the deepest place says it best.
        if any(other != path and other[: len(path)] == path for other in groups):
            continue
        yield _explain(path, group, document, fields)


def _path(error: ErrorDetails, value: Any) -> Path:
    """An error's location without the names of union members that pydantic puts in it."""
    path: list[int | str] = []
    missing = error["loc"][-1] if error["type"] == "missing" else None
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or part == missing):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(part)
            value = value[part]
    return tuple(path)


def _explain(path: Path, group: list[ErrorDetails], document: Document, fields: Fields) -> Problem:
    where, types, given = document.where(path), {error["type"] for error in group}, group[0]["input"]
    if types == {"missing"}:
        return Problem(where, "is missing", f"add it: {lower_first(fields.at(path).get('description', ''))}")
    if "extra_forbidden" in types:
        what, fix = unknown(path, given, fields)
        return Problem(where, what if where.endswith(dotted(path)) else f"`{dotted(path)}` {what}", fix)
    if "value_error" in types or "assertion_error" in types:
        return Problem(where, group[0]["msg"].partition(", ")[2] or group[0]["msg"])
    shape = fields.at(path)
    what = f"is {shown(path, given)}"
    if advice := foreign_values.value_advice(path, given):
        return Problem(where, what, advice)
    if given is None:
        return Problem(where, "is given without a value", f"give {allowed(shape, fields)}, or take the line out")
    if "string_pattern_mismatch" in types:
        key = group[0]["loc"][-1] == "[key]"
        told = None if key else _form(shape, fields)
        told = told or f"text that matches {group[0].get('ctx', {}).get('pattern')}"
        return Problem(
            where, "is not a name that can stand here" if key else what, f"allowed: {told}" + slug(path, given)
        )
    return Problem(where, what, f"allowed: {allowed(shape, fields)}" + _near_value(given, shape))


def unknown(path: Path, given: Any, fields: Fields) -> tuple[str, str]:
    """What to say of a key that its section does not have: what is wrong, and which field it should be."""
    key, section = str(path[-1]), path[:-1]
    while section and not fields.keys(section):
        section = section[:-1]
    what = "is not a field of " + (f"`{dotted(section)}`" if section else "the file")
    names = foreign.NAMES[fields.kind]
    elsewhere = [field for field in fields.all() if field[-1] == key]
    if key in names and not (section and elsewhere):
        return f"is a name from {names[key].tools}", names[key].advice(shown(path, given))
    if elsewhere:
        return what, f"write {' or '.join(f'`{dotted(field)}`' for field in elsewhere)}"
    if (nested := (*section, *key.split("."))) != path and nested in fields.all():
        return what, f"write `{nested[-1]}` inside `{dotted(nested[:-1])}`; dots are for --set"
    if near := get_close_matches(key, fields.keys(section), 1, 0.6):
        return what, f"did you mean `{dotted((*section, near[0]))}`?"
    by_name = {str(field[-1]): field for field in fields.all()}
    if near := get_close_matches(key, by_name, 1, 0.75):
        return what, f"did you mean `{dotted(by_name[near[0]])}`?"
    if near := get_close_matches(key, names, 1, 0.85):
        return what, names[near[0]].advice(shown(path, given))
    return what, f"its fields are {', '.join(fields.keys(section))}"


def shown(path: Path, value: Any) -> str:
    """A given value for a message: short, told apart from text when it is none, and never a credential."""
    if isinstance(value, (dict, list)) or value is None:
        return "empty" if value in ({}, []) else sort_of(value)
    if secrets.is_secret_field(path) or (isinstance(value, str) and secrets.named(path, value)):
        return "(not shown)"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the text {text}" if isinstance(value, str) else text


def allowed(shape: Shape, fields: Fields) -> str:
    """What a field takes, in words: `auto`, or a whole number of at least 1."""
    shape = fields.resolve(shape)
    if "anyOf" in shape:
        return ", or ".join(allowed(option, fields) for option in options(shape)) or "anything"
    if "const" in shape or "enum" in shape:
        choices = [f"`{choice}`" for choice in shape.get("enum", [shape.get("const")])]
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    if "properties" in shape:
        return f"a section of {', '.join(shape['properties'])}"
    names: dict[str | None, Callable[[], str]] = {
        "boolean": lambda: "true or false",
        "integer": lambda: "a whole number" + _bounds(shape),
        "number": lambda: "a number" + _bounds(shape),
        "string": lambda: "text that is not empty" if shape.get("minLength") else "text",
        "array": lambda: (
            f"a list of {allowed(shape.get('items', {}), fields)}"
            + (f" with at least {shape['minItems']}" if "minItems" in shape else "")
        ),
        "object": lambda: "a section",
    }
    return names.get(shape.get("type"), lambda: "anything")()


def _form(shape: Shape, fields: Fields) -> str | None:
    """What a text must look like: its own words for it, else those of its field."""
    forms = [fields.resolve(option).get("$comment") for option in options(shape)]
    return next(filter(None, forms), None) or lower_first(shape.get("description", "")) or None


def _bounds(shape: Shape) -> str:
    """` from 1`, ` above 0 and below 10`, or nothing."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    said = [f"{word} {f'{shape[key]:.12g}'}" for key, word in words.items() if key in shape]
    return "".join(f" {part}" for part in said)


def _near_value(given: Any, shape: Shape) -> str:
    choices = [
        str(c) for option in options(shape) for c in option.get("enum", [option["const"]] if "const" in option else [])
    ]
    near = get_close_matches(str(given).lower(), choices, 1, 0.6) if isinstance(given, str) else []
    if near:
        return f" (did you mean `{near[0]}`?)"
    if isinstance(given, str) and re.fullmatch(r"\s*[-+.\d][\d.eE+-]*\s*", given):
        return " (a number in quotes is text: write it without quotes)"
    if isinstance(given, float) and given.is_integer() and "integer" in {one.get("type") for one in options(shape)}:
        return f" (write {given:.0f}, without point or exponent)"
    return " (text such as this needs quotes)" if _is_text(shape) and isinstance(given, (int, float)) else ""


def _is_text(shape: Shape) -> bool:
    types = {option.get("type") for option in options(shape)}
    return "string" in types and not types & {"number", "integer"} and "enum" not in shape


def slug(path: Path, given: Any) -> str:
    """For a run's name that is none: the nearest name that is one."""
    name = re.sub(r"[^a-z0-9]+", "-", str(given).lower())[:40].strip("-")
    return f" (such as `{name}`)" if path == ("name",) and name else ""


def lower_first(text: str) -> str:
    text = " ".join(text.split())
    return (text[:1].lower() + text[1:]).rstrip(".")
