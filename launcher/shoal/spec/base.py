"""The one base of everything that is written down: what a person writes, and what a plan says."""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from shoal import __version__
from shoal.errors import Problem, SpecError


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


def unreadable(text: bytes, source: str) -> Problem:
    """What to say of a record that this Shoal cannot read: which one wrote it, where it says so."""
    try:
        body = from_json(text)
    except ValueError:
        return Problem(source, "is not whole", "what it belongs to cannot be gone on with: begin it anew")
    wrote = body.get("shoal") if isinstance(body, dict) else None
    what = f"was written by {f'shoal {wrote}' if wrote not in (None, __version__) else 'another version of shoal'}"
    return Problem(source, f"{what}, and this is {__version__}", "use that version for what it belongs to")
