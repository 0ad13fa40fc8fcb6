"""What a person is told when an S3 store refuses: one line with the cause and the fix, never a key."""

import shutil

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import CredentialRef, S3Spec

WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired", "RequestExpired"})
REFUSED = frozenset({"AccessDenied", "AllAccessDisabled", "403", "Forbidden"})
BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "429", "503"})
FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"})


def answer(error: Exception, url: str, s3: S3Spec) -> StorageError:
    """Says what `error`, raised by s3fs or what is below it, means for `url`."""
    what, fix = _by_code(code_of(error), url, s3) or _by_kind(error, s3)
    return StorageError(Problem(url, what, fix))


def code_of(error: BaseException | None) -> str:
    """The store's own error code, found along the chain of causes; empty when the store never answered."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def key_source(credentials: CredentialRef) -> str:
    """Where the key comes from, in words."""
    if credentials.anonymous:
        return "no key is used (storage.s3.credentials.anonymous)"
    if credentials.access_key_env or credentials.secret_key_env:
        return f"the key comes from the variables {credentials.access_key_env} and {credentials.secret_key_env}"
    if credentials.profile:
        return f"the key comes from the AWS profile {credentials.profile}"
    if credentials.file:
        return f"the key comes from {credentials.file}"
    return "the key comes from the usual AWS chain; name another under storage.s3.credentials"


def _by_code(code: str, url: str, s3: S3Spec) -> tuple[str, str] | None:
    bucket = url.removeprefix("s3://").split("/")[0]
    source = (
        "the key comes from the embedded server's folder" if s3.server == "embedded" else key_source(s3.credentials)
    )
    if code in WRONG_KEY:
        return "the store does not accept the key", source
    if code in EXPIRED:
        return "the key has expired", f"renew it; {source}"
    if code in REFUSED:
        return "the store refuses: wrong key, or no permission for this", source
    if code == "NoSuchBucket":
        return f"no bucket {bucket!r}", "check its name and the endpoint, or make it"
    if code in ("NoSuchKey", "404"):
        return "no such object", "check the name"
    if code in BUSY:
        return "the store is too busy", "try again later"
    if code in FULL:
        return "the store is full", "free space there, or choose another store"
    if code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return "the bucket lies in another region", "set storage.s3.region"
    if code == "InvalidRange":
        return "the object is shorter than expected", "it was cut short or replaced; make it again"
    if code == "InvalidBucketName":
        return f"{bucket!r} is no bucket name", "use 3 to 63 lower-case letters, digits, dots and dashes"
    if code == "InternalError" and s3.server == "embedded":
        folder = store.folder_of(s3)
        free = shutil.disk_usage(folder).free >> 20
        if free < store.LITTLE_MIB:
            return f"the store failed; the disk has only {free} MiB left", f"free space on the disk of {folder}"
    return (f"the store failed ({code})", "see the store's log, or try again") if code else None


def _by_kind(error: Exception, s3: S3Spec) -> tuple[str, str]:
    from botocore import exceptions as aws

    endpoint = s3.endpoint_url or ("the embedded server" if s3.server == "embedded" else "AWS")
    fix = "check storage.s3.endpoint_url and the network"
    if s3.server == "embedded":
        fix = f"see {s3.folder}/logs"
    if isinstance(error, FileNotFoundError):
        return "no such object", "check the name"
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.CredentialRetrievalError):
        return "no key was found", key_source(s3.credentials)
    if isinstance(error, aws.ProfileNotFound):
        return f"no AWS profile {s3.credentials.profile!r}", "check storage.s3.credentials.profile"
    if isinstance(error, aws.SSLError):
        return f"{endpoint} cannot be trusted or does not speak TLS", "check storage.s3.endpoint_url"
    unreachable = (aws.ConnectionError, aws.HTTPClientError, ConnectionError, TimeoutError)
    if isinstance(error, unreachable):
        return f"{endpoint} cannot be reached", fix
    if isinstance(error, aws.ParamValidationError | ValueError):
        first_line = " ".join(str(error).split())[:200]
        return f"the location or the endpoint is not valid ({first_line})", "check it in the file that names it"
    return f"the store failed ({type(error).__name__})", "see the store's log, or try again"
