"""What one stored object is, and how a pattern finds objects: the part that folders and buckets share."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from shoal.errors import Problem, StorageError

MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class ObjectInfo:
    url: str
    size: int
    """Bytes as stored."""
    etag: str
    """Changes when the content does: the store's own, or size and modification time of a local file."""


@dataclass(frozen=True)
class Children:
    """What lies directly under a folder."""

    folders: list[str]
    """Urls ending in "/"."""
    objects: list[ObjectInfo]


def replaced(url: str) -> StorageError:
    """What to say of an object that is not the one whose etag was given."""
    fix = "plan again, or put the object back as it was"
    return StorageError(Problem(url, "was replaced since the plan was made", fix))


class Tree(Protocol):
    """What a search needs to know. Folder urls end in "/"; a missing folder is an empty one."""

    def find(self, url: str) -> ObjectInfo | None: ...
    def children(self, url: str) -> Children: ...
    def under(self, url: str) -> list[ObjectInfo]: ...


def search(tree: Tree, pattern: str) -> list[ObjectInfo]:
    """The objects that `pattern` names, sorted by url: one file, a glob (`*`, `?`, `[ab]`, `**`), or all under "…/".

    A name that exists as it is written wins over reading it as a glob.
    """
    if pattern.endswith("/") and not MAGIC.intersection(pattern):
        return sorted(tree.under(pattern), key=lambda one: one.url)
    if not {"*", "?"}.intersection(pattern):
        exact = tree.find(pattern)
        if exact is not None or "[" not in pattern:
            return [exact] if exact else []
    literal = min(pattern.index(character) for character in MAGIC if character in pattern)
    base = pattern[: pattern.rindex("/", 0, literal) + 1] if "/" in pattern[:literal] else ""
    names = pattern[len(base) :].split("/")
    found = {one.url: one for one in _walk(tree, base, names)}
    return [found[url] for url in sorted(found)]


def _walk(tree: Tree, base: str, names: list[str]) -> Iterator[ObjectInfo]:
    head, *rest = names
    if head == "**" or head == "":
        wanted = rest if any(rest) else ["**"]
        yield from (one for one in tree.under(base) if _fits(one.url[len(base) :].split("/"), ["**", *wanted]))
    elif not MAGIC.intersection(head):
        if rest:
            yield from _walk(tree, f"{base}{head}/", rest)
        elif one := tree.find(base + head):
            yield one
    elif rest:
        for folder in tree.children(base).folders:
            if fnmatchcase(folder[len(base) : -1], head):
                yield from _walk(tree, folder, rest)
    else:
        yield from (one for one in tree.children(base).objects if fnmatchcase(one.url[len(base) :], head))


def _fits(parts: list[str], names: list[str]) -> bool:
    """Whether the path `parts` matches the pattern `names`, where `**` stands for any number of parts."""
    if not names:
        return not parts
    if names[0] == "**":
        return names == ["**"] or any(_fits(parts[skip:], names[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], names[0]) and _fits(parts[1:], names[1:])
