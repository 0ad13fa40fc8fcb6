"""The one base of everything that is written down: what a person writes, and what a plan says."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Frozen, refuses unknown keys, and takes each field's documentation from the line under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
