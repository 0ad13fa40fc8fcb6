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
    "a location with a name to log in with": re.compile(r"^[\w+.-]+://[^/\s@?#]+@\S*$"),
    "a location with a key in it": re.compile(
        r"^\S*[?&][\w.-]*(token|key|key_?id|secret|passw(or)?d|credentials?)=[^\s&]\S*$", re.IGNORECASE
    ),
    "a signed location": re.compile(r"[?&](X-Amz-Signature|X-Amz-Credential|Signature|sig)=", re.IGNORECASE),
}
SECRET_NAME = re.compile(
    r"(^|_)(token|secret|password|passwd|(access|api|secret|private)_?key(_id)?|credentials?)($|_)", re.I
)
WHOLLY_SECRET = re.compile(
    r"(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)"
    r"(^|(?<=_))(token|secret|password|passwd|(access|api|secret|private)_?key(_id)?|credentials?)$",
    re.IGNORECASE,
)
"""Names of fields that hold nothing but a credential, however short; a tokenizer's special tokens are none."""
LITERAL = re.compile(r"^[\w+/=.~-]{16,}$")
REFERENCE = re.compile(r"^(env:|file:)")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
FIXES = {
    "job": "take it out, make it invalid where it came from if the file was shared, and name where it is found instead: "
    "`env:NAME` or `file:PATH` in model.token",
    "cluster": "take it out, make it invalid where it came from if the file was shared, and name where it is found instead: "
    "storage.s3.credentials.access_key_env and secret_key_env hold names of environment variables, and "
    "kubernetes.secret_env says which Secret they come from",
}


def problems(document: Document, kind: str) -> Iterator[Problem]:
    """A problem for each value that is a credential; its text does not hold the value."""
    for path, value in leaves(document.value):
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            continue
        if what := named(path, str(value)):
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
    if REFERENCE.match(value):
        return None
    name = key.replace("-", "_")
    literal = (SECRET_NAME.search(name) and LITERAL.match(value)) or (WHOLLY_SECRET.search(name) and value.strip())
    return "a credential in plain text" if literal else None


def is_secret_field(path: Path) -> bool:
    """Whether a value at this path is never shown, whatever it looks like."""
    return any(isinstance(part, str) and SECRET_NAME.search(part) for part in path)
