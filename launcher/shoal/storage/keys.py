"""Where an S3 key comes from: looked up by reference when a client is made, and kept by nobody else."""

import configparser
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.errors import Problem, StorageError
from shoal.spec.cluster import CredentialRef

WHERE = "storage.s3.credentials"
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_ELSEWHERE = ("role_arn", "sso_session", "sso_start_url", "credential_process", "credential_source")
"""Settings of a profile that name somebody else to ask for a key."""
_OWN_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")
"""Variables that come before a profile when none is named; the client follows them by itself."""

Provider = Callable[[], Any]
"""Gives a key as obstore's S3Credential."""


def provider(credentials: CredentialRef) -> Provider | None:
    """What gives the key; None where the client's own chain is asked (variables, web identity, container, instance).

    Raises StorageError when a named place has no key.
    """
    if credentials.access_key_env or credentials.secret_key_env:
        return _from_variables(credentials)
    if credentials.file:
        return _from_file(Path(credentials.file).expanduser())
    if credentials.profile:
        found = profile(credentials.profile)
        if found is None:
            what = f"no AWS profile {credentials.profile!r}"
            raise StorageError(Problem(f"{WHERE}.profile", what, "name one of ~/.aws/credentials or ~/.aws/config"))
        return _from_profile(credentials.profile, found)
    if any(os.environ.get(name) for name in _OWN_VARIABLES):
        return None
    name = os.environ.get("AWS_PROFILE", "default")
    found = profile(name)
    has_key = found is not None and any(field in found for field in ("aws_access_key_id", *_ELSEWHERE))
    return _from_profile(name, found) if found is not None and has_key else None


def fixed(where: str, access_key: str, secret_key: str, token: str | None = None) -> Provider:
    """A key that does not change. Raises StorageError for one with characters no key has."""
    for part in (access_key, secret_key, token or "-"):
        if not _PRINTABLE.fullmatch(part):
            raise StorageError(Problem(where, "the key holds a space or a line break", "write it again without"))
    key = {"access_key_id": access_key, "secret_access_key": secret_key, "token": token, "expires_at": None}
    return lambda: key


def profile(name: str) -> Mapping[str, str] | None:
    """The settings of an AWS profile, the credentials file before the configuration file; None when neither has it."""
    found: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        path = Path(os.environ.get(variable) or default).expanduser()
        # A section named like the parser's own defaults would otherwise be no section.
        parser = configparser.RawConfigParser(default_section="")
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, ValueError, configparser.Error) as error:
            raise StorageError(Problem(str(path), "cannot be read as an AWS file of profiles", "correct it")) from error
        if parser.has_section(section):
            found |= dict(parser.items(section))
    return found or None


def _from_profile(name: str, found: Mapping[str, str]) -> Provider:
    where = f"{WHERE}.profile"
    if "aws_access_key_id" in found and "aws_secret_access_key" in found:
        key, secret = found["aws_access_key_id"], found["aws_secret_access_key"]
        return fixed(where, key, secret, found.get("aws_session_token"))
    other = next((field for field in _ELSEWHERE if field in found), None)
    if other is None:
        fix = "add aws_access_key_id and aws_secret_access_key"
        raise StorageError(Problem(where, f"the AWS profile {name!r} holds no key", fix))
    try:
        import boto3  # pyright: ignore[reportMissingImports]
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        what = f"the AWS profile {name!r} gets its key through {other}, which needs boto3"
        raise StorageError(Problem(where, what, "pip install boto3")) from error
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=name))
    except (BotoCoreError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise StorageError(
            Problem(where, f"the AWS profile {name!r} gives no key ({line})", "sign in again")
        ) from error


def _from_variables(credentials: CredentialRef) -> Provider:
    names = {"access_key_env": credentials.access_key_env, "secret_key_env": credentials.secret_key_env}
    if credentials.session_token_env:
        names["session_token_env"] = credentials.session_token_env
    problems = [
        Problem(f"{WHERE}.{field}", f"the variable {name} is not set" if name else "is missing beside the other", fix)
        for field, name in names.items()
        if not (name and os.environ.get(name))
        for fix in ["set it, or name another"]
    ]
    if problems:
        raise StorageError(*problems)
    return fixed(WHERE, *(os.environ[str(name)].strip() for name in names.values()))


def _from_file(path: Path) -> Provider:
    where = f"{WHERE}.file"
    try:
        if path.stat().st_mode & stat.S_IROTH:
            raise StorageError(Problem(where, f"everybody can read {path}", f"chmod 600 {path}"))
        body = json.loads(path.read_text())
        access_key, secret_key = str(body["access_key"]), str(body["secret_key"])
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = 'write {"access_key": "...", "secret_key": "..."} there, mode 0600'
        raise StorageError(Problem(where, f"{path} cannot be read as a key file", fix)) from error
    return fixed(where, access_key, secret_key)


def source(credentials: CredentialRef) -> str:
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
