"""What the Hub's client raises, as one line that says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR,
    errno.ENOENT,
}  # fmt: skip
# Large files go through a part of the client that tells its errors as text only.
_SYSTEM_ERROR = re.compile(r"([^:]+) \(os error (\d+)\)")
_STORAGE_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")


class HubError(CheckpointError):
    """The Hub, the network or the cache does not let us; the message says what to do."""


class NotOnHubError(HubError):
    """There is no such repository, or it may not be seen; the Hub does not say which."""


@contextmanager
def explained(repo: str, revision: str, name: str, *, fetching: bool = True) -> Iterator[None]:
    """Turn what the Hub's client raises into a `HubError` of one line.

    Args:
        repo, revision, name: what it was about; `name` is what to type for it.
        fetching: whether it was being brought here, so that fetching it elsewhere would help.

    Its transport's own errors get through it in places, and that library has changed twice; their
    base is always the first base of the client's own error.
    """
    from huggingface_hub.errors import HfHubHTTPError

    transport: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except CheckpointError:
        raise
    except (transport, OSError, ValueError, RuntimeError) as error:
        raise _explain(error, repo, revision, name, fetching) from error


def _explain(error: BaseException, repo: str, revision: str, name: str, here: bool) -> HubError:
    from huggingface_hub import constants, errors

    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            if not here:
                return HubError("HF_HUB_OFFLINE is set: unset it, since this needs the network")
            return HubError(
                f"{name} is not in the cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: run "
                f"`zoo fetch {name}` on a machine with network and copy its HF_HOME here, or set HF_HUB_CACHE"
            )
    for cause in chain:
        if isinstance(cause, errors.GatedRepoError):
            return HubError(
                f"{repo} asks for consent first: visit {constants.ENDPOINT}/{repo}, then `hf auth login`"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return HubError(
                f"{repo} has no revision {revision} on the Hub: see what {constants.ENDPOINT}/{repo} has"
            )
        if isinstance(cause, errors.HfHubHTTPError):
            return _explain_status(cause, repo, name, here)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return HubError(
                f"cannot write {name} to the cache {constants.HF_HUB_CACHE} ({cause.strerror}): free some "
                "space, or set HF_HUB_CACHE to a folder that can be written"
            )
        if isinstance(cause, OSError) and "Consistency check failed" in str(cause):
            return HubError(f"the download of {name} was cut short and nothing of it was kept: try again")
    reason = " ".join(str(chain[-1]).split()) or type(chain[-1]).__name__
    if (system := _SYSTEM_ERROR.search(reason)) and int(system[2]) in _DISK:
        return HubError(
            f"cannot write {name} to the caches {constants.HF_HUB_CACHE} and {constants.HF_XET_CACHE} "
            f"({system[1].strip()}): free some space, or set HF_HOME to a folder that can be written"
        )
    if refused := _STORAGE_STATUS.search(reason):
        return _of_status(int(refused[1]), name) or HubError(
            f"the Hub's storage refuses {name} ({refused[1]}): try again in a minute"
        )
    missing = f"{name} is not on this machine, and" if here else f"{name}:"
    remedy = (
        f", or run `zoo fetch {name}` on a machine with network and copy its HF_HOME here" if here else ""
    )
    return HubError(
        f"{missing} the Hub at {constants.ENDPOINT} cannot be reached ({reason}): try again{remedy}"
    )


def _explain_status(error: HfHubHTTPError, repo: str, name: str, here: bool) -> HubError:
    from huggingface_hub import constants

    status, headers = error.response.status_code, error.response.headers
    if status == 401 and "credentials" in headers.get("X-Error-Message", ""):
        return HubError(
            f"the Hub does not accept the token for {name}: `hf auth login` again, or correct HF_TOKEN"
        )
    if status in (401, 404):
        # The Hub answers 401 to strangers, so as not to say which repositories exist.
        if not here:
            return NotOnHubError(
                f"the Hub ({constants.ENDPOINT}) shows you no repository {repo}: log in with `hf auth login` "
                "and a token that may write"
            )
        return NotOnHubError(
            f"there is no repository {repo} on the Hub ({constants.ENDPOINT}), or you may not see it: check "
            "the name, or log in with `hf auth login`"
        )
    reason = " ".join(str(error.server_message or error).split())
    return _of_status(status, name) or HubError(f"the Hub refuses {name} ({status}): {reason}")


def _of_status(status: int, name: str) -> HubError | None:
    from huggingface_hub import constants

    if status == 403:
        return HubError(
            f"the token has no right to do this with {name}: make one that has, then `hf auth login`"
        )
    if status == 429:
        return HubError(
            f"the Hub gets too many requests from here for {name}: wait a few minutes and try again"
        )
    if status >= 500:
        return HubError(
            f"the Hub at {constants.ENDPOINT} has a fault ({status}) with {name}: try again in a minute"
        )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        following = error.__cause__ or error.__context__
        if following is None:
            return
        error = following
