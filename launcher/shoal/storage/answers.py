"""What a person is told when an S3 store refuses: one line with the cause and the fix, never a key."""

import re
import shutil
from dataclasses import dataclass

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import S3Spec
from shoal.storage.faults import Passing, Truncated
from shoal.storage.keys import source

WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
REFUSED = frozenset({"AccessDenied", "AllAccessDisabled", "403", "401", "Forbidden"})
BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ThrottlingException"})
FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"})
ELSEWHERE = frozenset(
    {"PermanentRedirect", "301", "307", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well succeed."""
PASSING_CODES = BUSY | {"InternalError", "RequestTimeout", "RequestTimeTooSkewed", "OperationAborted"}

_STATUS = re.compile(r"status code: (\d{3})|\bstatus: (\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_HOST = re.compile(r"Error performing \w+ \w+://([^/\s:]+)")
_KIND = re.compile(r"kind: (Connect|Timeout|Interrupted|Request|Decode)\b")
_UNTRUSTED = re.compile(r"certificate|corrupt message|InvalidContentType|HandshakeFailure|received fatal alert", re.I)
_METADATA = "169.254."
"""Where machines of a cloud ask for their key: asked last, and unanswered elsewhere."""


@dataclass(frozen=True)
class Cause:
    """What lies behind an error of the client, which says so in its text alone."""

    status: int
    """HTTP status; 0 when no answer came."""
    code: str
    """The store's own error code, else the status, else empty."""
    kind: str
    """The client's word when no answer came: Connect, Timeout, Interrupted ..."""
    host: str
    """Whom it asked."""
    untrusted: bool
    """TLS failed."""
    broke: bool
    """The connection ended before the answer did."""


def cause_of(error: BaseException) -> Cause:
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    kind, host = _KIND.search(text), _HOST.search(text)
    number = status[1] or status[2] if status else ""
    if "redirect without LOCATION" in text:
        number = "301"
    return Cause(
        int(number or 0),
        code[1] if code else number,
        kind[1] if kind else "",
        host[1] if host else "",
        untrusted=not number and _UNTRUSTED.search(text) is not None,
        broke=not number and ("HTTP error" in text or kind is not None),
    )


def passing(error: BaseException, s3: S3Spec) -> Passing | None:
    """What may be gone at the next attempt; None for a failure that stays."""
    from obstore.exceptions import BaseError

    if isinstance(error, Truncated):
        return Passing(str(error))
    if not isinstance(error, BaseError):
        return None
    cause = cause_of(error)
    if cause.host.startswith(_METADATA) or cause.untrusted or (cause.code == "InternalError" and _little_room(s3)):
        return None
    if cause.status:
        code = "" if cause.code == str(cause.status) else f" {cause.code}"
        return Passing(f"{cause.status}{code}") if cause.status in PASSING or cause.code in PASSING_CODES else None
    if cause.kind == "Connect":
        return Passing("no connection", nobody=True)
    if cause.kind == "Timeout":
        return Passing("no answer in time")
    return Passing("the connection broke") if cause.broke else None


def answer(error: Exception, url: str, s3: S3Spec) -> StorageError:
    """Says what `error`, raised by obstore, means for `url`."""
    cause = cause_of(error)
    what, fix = _by_host(cause, s3) or _by_code(cause.code, url, s3) or _by_kind(error, cause, s3)
    return StorageError(Problem(url, what, fix))


def _by_host(cause: Cause, s3: S3Spec) -> tuple[str, str] | None:
    if cause.host.startswith(_METADATA):
        return "no key was found", source(s3.credentials)
    if cause.host.startswith("sts."):
        return "the web identity was not accepted", "check AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE"
    return None


def _by_code(code: str, url: str, s3: S3Spec) -> tuple[str, str] | None:
    bucket = url.removeprefix("s3://").split("/")[0]
    origin = "the key comes from the embedded server's folder" if s3.server == "embedded" else source(s3.credentials)
    if code in WRONG_KEY:
        return "the store does not accept the key", origin
    if code in EXPIRED:
        return "the key has expired", f"renew it; {origin}"
    if code in REFUSED:
        return "the store refuses: wrong key, or no permission for this", origin
    if code == "NoSuchBucket":
        return f"no bucket {bucket!r}", "check its name and the endpoint, or make it"
    if code in ("NoSuchKey", "404"):
        return "no such object", "check the name"
    if code in BUSY | {"429", "503"}:
        return "the store is too busy", "try again later"
    if code in FULL:
        return "the store is full", "free space there, or choose another store"
    if code in ELSEWHERE:
        return "the bucket lies in another region", "set storage.s3.region"
    if code == "InvalidRange":
        return "the object is shorter than expected", "it was cut short or replaced; make it again"
    if code == "InvalidBucketName":
        return f"{bucket!r} is no bucket name", "use 3 to 63 lower-case letters, digits, dots and dashes"
    if code == "InternalError" and _little_room(s3):
        folder = store.folder_of(s3)
        free = shutil.disk_usage(folder).free >> 20
        return f"the store failed; the disk has only {free} MiB left", f"free space on the disk of {folder}"
    return (f"the store failed ({code})", "see the store's log, or try again") if code else None


def _little_room(s3: S3Spec) -> bool:
    return s3.server == "embedded" and shutil.disk_usage(store.folder_of(s3)).free >> 20 < store.LITTLE_MIB


def _by_kind(error: Exception, cause: Cause, s3: S3Spec) -> tuple[str, str]:
    endpoint = s3.endpoint_url or ("the embedded server" if s3.server == "embedded" else "AWS")
    fix = "check storage.s3.endpoint_url and the network"
    if s3.server == "embedded":
        fix = f"see {s3.folder}/logs"
    if isinstance(error, FileNotFoundError):
        return "no such object", "check the name"
    if isinstance(error, Truncated):
        return str(error), "try again; the network or the store loses bytes"
    if cause.untrusted:
        return f"{endpoint} cannot be trusted or does not speak TLS", "check storage.s3.endpoint_url"
    if cause.kind == "Timeout":
        return f"{endpoint} does not answer in time", fix
    if cause.kind == "Connect":
        return f"{endpoint} cannot be reached", fix
    if cause.broke:
        return f"the connection to {endpoint} broke", fix
    first_line = " ".join(str(error).split("Debug source")[0].split())[:200]
    if isinstance(error, ValueError):
        return f"the location is not valid ({first_line})", "check it in the file that names it"
    return f"the store failed ({first_line or type(error).__name__})", "see the store's log, or try again"
