"""A YAML file as a value that remembers its lines, and the `--set` overrides on top of it.

Read by a SafeLoader with two differences: `2e-4` is a number (YAML 1.1 makes it text), and a date stays text.
Refused: keys given twice, keys that are not text, values that contain themselves.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from shoal.errors import Problem, SpecError

Path = tuple[str | int, ...]
"""Keys and list positions from the top of a file to a value."""

MOST_VALUES = 100_000
MERGE_TAG = "tag:yaml.org,2002:merge"
TEXT_TAG = "tag:yaml.org,2002:str"
FLOAT_TAG = "tag:yaml.org,2002:float"
DATE_TAG = "tag:yaml.org,2002:timestamp"
FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*\.[\d_]*|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)
HINTS = {
    "mapping values are not allowed here": "a value that holds `: ` needs quotes, and keys of one section the same indent",
    "cannot start any token": "indent with spaces, and put a value that starts with %, @ or a backquote in quotes",
    "expected <block end>": "give the lines of one section the same indent",
    "expected a single document": "keep one document in a file: take the line `---` out",
    "could not determine a constructor": "take the tag (the word after `!`) out, or put the value in quotes",
    "found undefined alias": "put a value that starts with * in quotes",
    "found unexpected end of stream": "close the quote or bracket that is open there",
    "while parsing a flow": "close the quote or bracket that is open there",
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # what a text without quotes may be
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (FLOAT_TAG, DATE_TAG)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """A mapping, where it was read, and which of its paths came from `--set`."""

    source: str
    """The file as the person named it."""
    value: dict[str, Any]
    root: yaml.Node | None = field(default=None, repr=False)
    overridden: tuple[tuple[str, ...], ...] = ()

    def where(self, path: Path) -> str:
        """`job.yaml:12 train.batch_size`, or `--set train.batch_size` when the value came from there."""
        for override in self.overridden:
            if override[: len(path)] == path and self.line(path) is None:
                return f"--set {'.'.join(override)}"
            if path[: len(override)] == override:
                return f"--set {dotted(path)}"
        line = self.line(path) or self.line(path[:-1])
        return f"{self.source}:{line} {dotted(path)}" if line else f"{self.source} {dotted(path)}"

    def line(self, path: Path) -> int | None:
        """1-based line of the key (or list item) at `path`; None when the file does not hold it, or for the top."""
        node, line = self.root, None
        for part in path:
            child = _child(node, part)
            if child is None:
                return None
            line, node = child
        return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        found = [(key, value) for key, value in node.value if key.value == str(part)]
        return (found[-1][0].start_mark.line + 1, found[-1][1]) if found else None
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def dotted(path: Path) -> str:
    """`("data", "train", 1)` -> `data.train[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def parse(text: str | bytes, source: str) -> Document:
    """The document in `text`. Raises SpecError for anything that is not one mapping of texts to values."""
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise SpecError(
                Problem(
                    source,
                    "the file is empty",
                    "`shoal init` writes a job file to start from; `--on local` needs no profile",
                )
            )
        if problems := _node_problems(root, source):
            raise SpecError(*problems)
        value = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_problem(error, source)) from None
    except yaml.reader.ReaderError as error:
        what = f"is not text that YAML allows (at byte or character {error.position})"
        raise SpecError(Problem(source, what, "save it as UTF-8 without control characters")) from None
    except RecursionError:
        raise SpecError(
            Problem(source, "is nested too deeply to be read", "a job file has at most four levels")
        ) from None
    except ValueError as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(
            Problem(source, "holds a number that cannot be read", "put it in quotes or shorten it")
        ) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(value, dict):
        what = f"is {sort_of(value)}, not a mapping of fields to values"
        raise SpecError(Problem(source, what, "start with a line such as `name: my-run`"))
    return Document(source, value, root)


def _syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    said = ", ".join(part for part in (error.context, error.problem) if part)
    fix = next((hint for part, hint in HINTS.items() if part in said), "check indents, quotes and colons around there")
    return Problem(where, f"cannot be read as YAML: {said}", fix)


def _node_problems(root: yaml.Node, source: str) -> list[Problem]:
    """Keys given twice, keys that are not text, values that contain themselves, and aliases that multiply to too much."""
    problems: list[Problem] = []
    sizes: dict[int, int] = {}  # values in a node, aliases written out; each node is visited once

    def visit(node: yaml.Node, above: frozenset[int]) -> int:
        if isinstance(node, yaml.ScalarNode) or id(node) in sizes:
            return sizes.get(id(node), 1)
        if id(node) in above:
            line = node.start_mark.line + 1
            problems.append(
                Problem(f"{source}:{line}", "this value contains itself", "take the alias (`*` and a word) out")
            )
            return 1
        if isinstance(node, yaml.MappingNode):
            problems.extend(_key_problems(node, source))
        children = [child[1] if isinstance(node, yaml.MappingNode) else child for child in node.value]
        sizes[id(node)] = 1 + sum(visit(child, above | {id(node)}) for child in children)
        return sizes[id(node)]

    if visit(root, frozenset()) > MOST_VALUES:
        problems.append(Problem(source, f"holds over {MOST_VALUES:,} values", "take aliases of aliases out"))
    return problems


def _key_problems(node: yaml.MappingNode, source: str) -> Iterator[Problem]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == MERGE_TAG:
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != TEXT_TAG:
            what = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            yield Problem(f"{source}:{line}", f"{what} is a key, and keys are text", "put it in quotes")
        elif key.value in lines:
            what = f"is given twice, here and on line {lines[key.value]}"
            yield Problem(f"{source}:{line} {key.value}", what, "keep one of the two")
        else:
            lines[key.value] = line


def override(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Problem]]:
    """The document with each `a.b=value` (value read as YAML) in place, and a problem for each that cannot be."""
    problems: list[Problem] = []
    for text in overrides:
        key, equals, written = text.partition("=")
        parts = _parts(key.strip())
        where = f"--set {key.strip()}"
        if not equals or not all(parts):
            fix = "write --set FIELD=VALUE, such as --set optimizer.learning_rate=1e-4"
            problems.append(Problem(where, "gives no field a value", fix))
            continue
        try:
            value = parse(f"value: {written}", where).value["value"]
            changed = _with(document.value, parts, value, where)
        except SpecError as error:
            problems += [problem for problem in error.problems if isinstance(problem, Problem)]
        else:
            document = replace(document, value=changed, overridden=(*document.overridden, parts))
    return document, problems


def _parts(key: str) -> tuple[str, ...]:
    """The keys that a dotted name goes through; a field of the job is one key of a sweep's space, dots and all."""
    parts = key.split(".")
    return ("sweep", "space", ".".join(parts[2:])) if parts[:2] == ["sweep", "space"] and parts[2:] else tuple(parts)


def _with(section: Any, parts: tuple[str, ...], value: Any, where: str) -> dict[str, Any]:
    """A copy of `section` with `value` at `parts`; YAML aliases share sections, so nothing is changed in place."""
    if not parts:
        return value
    if section is not None and not isinstance(section, dict):
        raise SpecError(
            Problem(where, f"`{parts[0]}` would go inside {sort_of(section)}", "set the whole value instead")
        )
    inside = section or {}
    return {**inside, parts[0]: _with(inside.get(parts[0]), parts[1:], value, where)}


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every scalar with its path."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from leaves(inside, (*path, key))
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            yield from leaves(inside, (*path, index))
    else:
        yield path, value


def sort_of(value: Any) -> str:
    """What a value is, in a person's words."""
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a section",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
