"""The S3 client (obstore) for one bucket: endpoint, region, proxies, time limits. Its own retries are off but for parts."""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import S3Spec
from shoal.storage.keys import fixed, profile, provider

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

CONNECT_TIMEOUT_S = 3
"""Within a few of these it is known that nothing listens."""
STALL_TIMEOUT_S = 20
"""A read that gets no byte for so long is broken off."""
REQUEST_TIMEOUT_S = 120
"""For one request, which moves at most a few MiB."""
PART_TIMEOUT_S = 300
PART_RETRIES = 5
"""A part of a large upload is sent again by the client itself: it cannot be sent again from outside."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCATION = "<CreateBucketConfiguration><LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
_REGION = re.compile(r"[a-z0-9-]+")

_runtime_of: int | None = None
"""The process whose threads drive the client. They do not survive a fork: a request in the child would wait for ever."""


def need_own_runtime(url: str) -> None:
    """Refuses, instead of hanging, in a process forked from one that has used the client."""
    global _runtime_of
    if _runtime_of not in (None, os.getpid()):
        fix = "start it anew (multiprocessing's spawn, not fork)"
        raise StorageError(Problem(url, "this process was forked from one that already talks to the store", fix))
    _runtime_of = os.getpid()


def endpoint_of(s3: S3Spec) -> str | None:
    """The endpoint that a person named, in the profile or to AWS's own tools; None for AWS. Raises StorageError."""
    endpoint = s3.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return None
    try:
        named = urlsplit(endpoint)
        known = named.scheme in ("http", "https") and bool(named.hostname) and (named.port or 1) > 0
    except ValueError:
        known = False
    if not known or re.search(r"[\s@?#]", endpoint):
        # What stands before an @ may be a key.
        given = "what is given" if "@" in endpoint else repr(endpoint)
        raise StorageError(Problem("storage.s3.endpoint_url", f"{given} is no endpoint", "write https://HOST:PORT"))
    return endpoint


def connect(s3: S3Spec, bucket: str, parts: bool = False) -> "S3Store":
    """A client of `bucket`; one for uploads in `parts` waits longer and sends a failed part again by itself.

    It cannot be pickled, and it does not survive a fork.
    """
    from obstore.store import S3Store

    credentials, keys, region = s3.credentials, None, s3.region
    if s3.server == "embedded":
        server = store.connection(s3)
        endpoint, anonymous = server.endpoint, False
        keys = fixed(str(store.folder_of(s3)), server.access_key, server.secret_key)
    else:
        endpoint, anonymous = endpoint_of(s3), credentials.anonymous
        keys = None if anonymous else provider(credentials)
        region = region or _region(credentials.profile)
    if region and not _REGION.fullmatch(region):
        raise StorageError(Problem("storage.s3.region", f"{region!r} is no region", "write one like eu-central-1"))
    config: S3Config = {"skip_signature": anonymous}
    if endpoint:
        # Stores other than AWS know paths rather than host names. Both names of the endpoint, for a variable of AWS's
        # own tools would win over one of them.
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint
        config["virtual_hosted_style_request"] = False
    if region or endpoint:
        config["region"] = region or "us-east-1"
    return S3Store(
        bucket,
        config=config,
        client_options=_client_options(endpoint, parts),
        credential_provider=keys,
        retry_config={"max_retries": PART_RETRIES if parts else 0, "retry_timeout": timedelta(seconds=60)},
    )


def _client_options(endpoint: str | None, parts: bool) -> Any:
    options: dict[str, Any] = {"connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S)}
    if parts:
        # No answer comes before the last byte has gone: a stall cannot be told from a slow line.
        options["timeout"] = timedelta(seconds=PART_TIMEOUT_S)
    else:
        options["timeout"] = timedelta(seconds=REQUEST_TIMEOUT_S)
        options["read_timeout"] = timedelta(seconds=STALL_TIMEOUT_S)
    if endpoint is None:
        return options
    host = urlsplit(endpoint).hostname or ""
    options["allow_http"] = endpoint.startswith("http://")
    if host in LOOPBACK:
        # No proxy leads to this machine itself; naming one with this exception is how the client is told.
        options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": host}
    return options


def make_bucket(client: "S3Store") -> None:
    """Makes the client's bucket; one that is there already is kept. Raises obstore's GenericError.

    The client makes no buckets, but it signs: the store is sent a signed PUT.
    """
    import obstore
    from obstore.exceptions import GenericError

    url = obstore.sign(client, "PUT", "", timedelta(minutes=1))
    region = client.config.get("region") or "us-east-1"
    body = "" if region == "us-east-1" else _LOCATION.format(region=region)
    proxies = ProxyHandler({}) if urlsplit(url).hostname in LOOPBACK else ProxyHandler()
    try:
        with build_opener(proxies).open(Request(url, body.encode(), method="PUT"), timeout=STALL_TIMEOUT_S):  # noqa: S310
            return
    except HTTPError as error:
        said = error.read(1 << 16).decode(errors="replace")
        if error.code != 409 or "<Code>BucketAlready" not in said:
            # In the client's own words, for its errors say what happened in their text alone.
            raise GenericError(f"status code: {error.code}: {said}") from error
    except OSError as error:
        raise GenericError(f"HTTP error: kind: Connect {error}") from error


def _region(name: str | None) -> str | None:
    """The region of an AWS profile, for variables of AWS's own tools are followed by the client."""
    if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return None
    return (profile(name or os.environ.get("AWS_PROFILE", "default")) or {}).get("region")
