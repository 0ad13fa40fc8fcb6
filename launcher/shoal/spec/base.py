"""The one base of everything that is written down: what a person writes, and what a plan says."""

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from shoal import __version__
from shoal.errors import Problem, SpecError

LOST = "what it belongs to cannot be gone on with: begin it anew"
"""What to do about a record that is not whole, as a rule."""


class Frozen(BaseModel):
    """Frozen, refuses unknown keys, and takes each field's documentation from the line under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def read_back(cls, text: bytes, source: str) -> Self:
        """What a Shoal wrote down as JSON. Raises: SpecError when another version wrote it, or it is not whole."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise SpecError(unreadable(text, source)) from None


def recorded(text: bytes, source: str, names: Sequence[str], lost: str = LOST) -> dict[str, Any]:
    """What a Shoal of any version wrote down as a JSON mapping, if it holds these dotted names.

    Raises: SpecError when it does not; `lost` is what to do about a record that is not whole.
    """
    try:
        body = from_json(text)
        for name in names:
            reduce(getitem, name.split("."), body)
    except (ValueError, TypeError, KeyError):
        raise SpecError(unreadable(text, source, lost)) from None
    return body


def unreadable(text: bytes, source: str, lost: str = LOST) -> Problem:
    """What to say of a record that this Shoal cannot read: which one wrote it, where it says so."""
    try:
        body = from_json(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return Problem(source, "is not whole", lost)
    wrote = body.get("shoal")
    what = f"was written by {f'shoal {wrote}' if wrote not in (None, __version__) else 'another version of shoal'}"
    return Problem(source, f"{what}, and this is {__version__}", "use that version for what it belongs to")
