"""The Hugging Face hub: names of models there, tokens by reference, and its refusals as answers.

The endpoint is huggingface_hub's own: `HF_ENDPOINT`, else https://huggingface.co.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ModelError, Problem, SpecError

CONNECT_TIMEOUT_S = 5.0
_REPO = re.compile(r"^(?P<repo>[A-Za-z0-9][\w.-]*/[\w][\w.-]*)(?:/(?P<file>[^:]+\.gguf))?$")


def split(name: str) -> tuple[str, str | None] | None:
    """`ORG/NAME` or `ORG/NAME/FILE.gguf` as (repository, file); None for what can be no hub id."""
    match = _REPO.match(name)
    if match is None or match["repo"].endswith(".gguf"):
        return None
    return match["repo"], match["file"]


def secret(reference: str, where: str) -> str:
    """The value behind `env:NAME` or `file:PATH`. Raises SpecError when there is none; never repeats the value."""
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
        if not value:
            raise SpecError(Problem(where, f"the environment variable {name} is not set", f"export {name}=..."))
        return value.strip()
    try:
        value = Path(name).expanduser().read_text().strip()
    except OSError as error:
        raise SpecError(Problem(where, f"{name} cannot be read: {error.strerror}", "name a readable file")) from error
    if not value:
        raise SpecError(Problem(where, f"{name} is empty", "write the token into it"))
    return value


@contextmanager
def answers(where: str, repo: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises about `repo` into a ModelError at the field `where`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    local = "or give a folder that holds the model"
    try:
        yield
    except GatedRepoError as error:
        accept = f"accept its terms at {endpoint}/{repo} and set model.token: env:HF_TOKEN"
        raise ModelError(Problem(where, f"{repo} is gated and this token does not open it", accept)) from error
    except RepositoryNotFoundError as error:
        fix = "no such folder here either; check the name ORG/NAME, and for a private model set model.token"
        raise ModelError(Problem(where, f"{endpoint} has no model {repo} that this token may see", fix)) from error
    except RevisionNotFoundError as error:
        what = f"{repo} has no revision {revision}"
        raise ModelError(Problem("model.revision", what, f"see {endpoint}/{repo}/commits/main")) from error
    except OfflineModeIsEnabled as error:
        what = f"{repo} is no folder here and not in the local cache, and HF_HUB_OFFLINE=1 forbids asking the hub"
        raise ModelError(Problem(where, what, f"unset HF_HUB_OFFLINE, {local}")) from error
    except LocalEntryNotFoundError as error:
        what = f"{endpoint} cannot be reached, and {repo} is not in the local cache"
        raise ModelError(Problem(where, what, f"check the network or HF_ENDPOINT, {local}")) from error
    except EntryNotFoundError as error:
        raise ModelError(Problem(where, f"{repo}: a file is missing: {_line(error)}", local)) from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            fix = "renew it, and check what model.token names"
            raise ModelError(Problem(where, f"{endpoint} does not accept the token for {repo}", fix)) from error
        fix = "try again later" if error.response.status_code in (429, 500, 502, 503, 504) else "check model.token"
        raise ModelError(Problem(where, f"{endpoint} refused {repo}: {_line(error)}", fix)) from error
    except HTTPError as error:
        what = f"{endpoint} cannot be reached: {_line(error)}"
        raise ModelError(Problem(where, what, f"check the network or HF_ENDPOINT, {local}")) from error
    except HFValidationError as error:
        raise ModelError(Problem(where, f"{repo} is no hub id: {_line(error)}", "write ORG/NAME")) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
