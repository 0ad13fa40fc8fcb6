"""Credentials that stand written in a file: recognised, refused, and never repeated in a message."""

import re
from collections.abc import Iterator

from shoal.errors import Problem
from shoal.spec.document import Document, Path, leaves

SHAPES = {
    "an AWS access key id": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an API key": re.compile(
        r"\b(sk|rk|pk)-(?=\S*\d)(?=\S*[A-Z])[\w-]{20,}|\bAIza[0-9A-Za-z_-]{30,}|\bxox[abprs]-[0-9A-Za-z-]{10,}"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a location with a password in it": re.compile(r"://[^/\s:@]*:(?!\d+/)[^\s@]+@"),
    "a signed location": re.compile(r"[?&](X-Amz-Signature|X-Amz-Credential|Signature|sig)=", re.IGNORECASE),
}
SECRET_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|(access|api|secret|private)_?key(_id)?|credentials?)($|_)", re.I
)
LITERAL = re.compile(r"^[\w+/=.~-]{16,}$")
REFERENCE = re.compile(r"^(env:|file:)")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
FIXES = {
    "job": "take it out, make it invalid where it came from if the file was shared, and name where it is found instead: "
    "`env:NAME` or `file:PATH` in model.token",
    "cluster": "take it out, make it invalid where it came from if the file was shared, and name where it is found instead: "
    "storage.s3.credentials.access_key_env and secret_key_env hold names of environment variables",
}


def problems(document: Document, kind: str) -> Iterator[Problem]:
    """A problem for each value that is a credential; its text does not hold the value."""
    for path, value in leaves(document.value):
        if isinstance(value, str) and (what := named(path, value)):
            yield Problem(document.where(path), f"{what} (not shown here)", FIXES[kind])


def named(path: Path, value: str) -> str | None:
    """What sort of credential `value` is, by its shape or by its field's name; None when it is none."""
    for name, shape in SHAPES.items():
        if shape.search(value):
            return f"{name} in plain text"
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if key.endswith("_env"):
        mixed = len(value) >= 32 and any(c.islower() for c in value) and any(c.isdigit() for c in value)
        return (
            "not the name of an environment variable but, it seems, a credential"
            if mixed or not VARIABLE.match(value)
            else None
        )
    if SECRET_NAME.search(key) and LITERAL.match(value) and not REFERENCE.match(value):
        return "a credential in plain text"
    return None


def is_secret_field(path: Path) -> bool:
    """Whether a value at this path is never shown, whatever it looks like."""
    return any(isinstance(part, str) and SECRET_NAME.search(part) for part in path)
