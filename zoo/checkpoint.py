"""The checkpoint folder: written in one piece, read strictly.

A checkpoint is a folder with four files.  `config.json` says everything needed to build the
model; `model.safetensors` holds its weights; `README.md` is its card; `metrics.json` has what was
measured on it.  The first two are needed to load, the others accompany them; pictures that the card
shows may be in a folder `figures`, which nothing here reads.  No file is ever unpickled.  Training,
the wheel and the Hub all use this same folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zoo.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from zoo import registry

    Upgrade = Callable[
        [dict[str, Any], dict[str, torch.Tensor]], tuple[dict[str, Any], dict[str, torch.Tensor]]
    ]

FORMAT_VERSION = 4
KINDS = ("denoiser", "score-dynamics")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
METRICS = "metrics.json"

_TEXT_LIMIT = 16 * 2**20
_WEIGHTS_LIMIT = 4 * 2**30
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_VERSION = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedCheckpointError(CheckpointError):
    """Files that are missing or are not what was written: another copy of them would help."""


def _denoisers_may_stall(
    config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """1 to 2: the first denoisers took all their steps; those made since then say when to stop early."""
    if config.get("kind") == "denoiser":
        config = {"stall": 1e9, **config}  # displacements never grow by that much, so they never stall
    return config, weights


def _denoisers_may_judge(
    config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """2 to 3: denoisers may have a head that gives a verdict per atom; those made before have none."""
    if config.get("kind") == "denoiser":
        config = {"verdict": {}, **config}
    return config, weights


def _denoisers_may_act_on_one_element(
    config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """3 to 4: denoisers may be for the atoms of one element; those made before are for all atoms."""
    if config.get("kind") == "denoiser":
        config = {"acts_on": "", **config}
    return config, weights


_UPGRADES: dict[int, Upgrade] = {
    1: _denoisers_may_stall,
    2: _denoisers_may_judge,
    3: _denoisers_may_act_on_one_element,
}
"""From format n to n + 1.  The tensors are an empty dict when only the config is being read.

A format gets a new number whenever a reader of the old one would misread the new one, or the other
way round; a folder of each old one is kept in `tests/data/checkpoints`, with what it must still do.
"""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, after every check has passed.

    `weights` are CPU tensors; `config` is in the current format, whatever was on disk.
    """

    folder: Path
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    metrics: dict[str, Any]
    card: str


# -- reading ---------------------------------------------------------------------------------


def load(folder: str | os.PathLike[str], *, kind: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Open a checkpoint folder and check all of it.

    The weights are read once, and the bytes that were hashed are the bytes that are parsed.

    Args:
        folder: the checkpoint folder.
        kind: refuse any other kind of model.
        sha256: what `model.safetensors` must hash to, from the registry, on top of what the
            folder's own config says.

    Raises:
        CheckpointError: missing or odd files, bad JSON, a newer format, another kind, weights
            that do not match their sha256, are damaged or are not finite.
    """
    path = folder_at(folder)
    raw = _read_config(path)
    weights = _read_weights(path, {raw["weights_sha256"], sha256} - {None})
    config, weights = _upgrade(path, raw, weights)
    _check_config(path, config, kind)
    metrics = _read_json(path / METRICS) if _exists(path / METRICS) else {}
    card = _read_text(path / CARD) if _exists(path / CARD) else ""
    return Checkpoint(path, config, weights, metrics, card)


def read_config(folder: str | os.PathLike[str], *, kind: str | None = None) -> dict[str, Any]:
    """The folder's config in the current format, without reading the weights or importing torch.

    Raises:
        CheckpointError: as `load`, as far as the config goes.
    """
    path = folder_at(folder)
    config, _ = _upgrade(path, _read_config(path), {})
    _check_config(path, config, kind)
    return config


def read_metrics(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was measured on this checkpoint; empty if nothing was.

    Raises:
        CheckpointError: not a folder, or `metrics.json` cannot be read.
    """
    path = folder_at(folder)
    return _read_json(path / METRICS) if _exists(path / METRICS) else {}


def check_weights_file(folder: str | os.PathLike[str], sha256: str) -> None:
    """Compare the weights file with its sha256, without torch and without opening it as tensors.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged or was tampered with.
    """
    path = folder_at(folder) / WEIGHTS
    _check_digest(path, _read_bytes(path, _WEIGHTS_LIMIT), {sha256})


def resolve(name_or_path: str | os.PathLike[str]) -> tuple[Path, registry.Record | None]:
    """The folder meant by a path or by a name, if it is on this machine: `zoo.hub.locate` without network.

    The record comes back with a name of the registry, so that the caller can pass its sha256 to `load`.

    Raises:
        UnknownCheckpointError: neither a folder nor a known name; close matches are offered.
        CheckpointError: a path that does not exist, a file instead of a folder, or a checkpoint that
            is not on this machine.
    """
    from zoo import hub

    found = hub.locate(name_or_path, network=False)
    return found.folder, found.record


def check_weights(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, torch.Tensor], where: str = WEIGHTS
) -> None:
    """Refuse weights that are not exactly those of the model: same names, same shapes.

    Raises:
        CheckpointError: naming the missing, unexpected and misshaped tensors in one line.
    """
    missing = sorted(set(expected) - set(got))
    unexpected = sorted(set(got) - set(expected))
    misshaped = [
        f"{key} is {tuple(got[key].shape)} instead of {tuple(expected[key])}"
        for key in sorted(set(expected) & set(got))
        if tuple(got[key].shape) != tuple(expected[key])
    ]
    faults = [
        f"{label} {_some(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit the model its config describes: {'; '.join(faults)}; "
            "take config and weights from the same checkpoint"
        )


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def looks_like_path(text: str) -> bool:
    """Whether this can only be a path, never a name of the registry."""
    separators = {"/", os.sep, os.altsep} - {None}
    return text.startswith((".", "~")) or any(mark in text for mark in separators if mark)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def folder_at(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder that exists.

    Raises:
        CheckpointError: there is nothing, or a file.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.suffix in PICKLES and path.is_file():
        raise CheckpointError(_pickle_refused(path))
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, not a checkpoint folder: give the folder that holds {CONFIG}"
        )
    raise CheckpointError(f"no checkpoint folder at {path}: check the path, or see `zoo list` for names")


def _pickle_refused(path: Path) -> str:
    return (
        f"{path} may be a pickle, which can run any code when it is opened: only {WEIGHTS} is read; "
        "convert the weights with safetensors first"
    )


def _read_bytes(path: Path, limit: int) -> bytes:
    # Links are followed (download caches are made of them), but what they lead to must be a
    # plain file: opening a pipe or a device would block or never end.
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise DamagedCheckpointError(f"{path} is not a plain file: fetch the checkpoint again")
        if info.st_size > limit:
            raise CheckpointError(
                f"{path} has {info.st_size:,} bytes, more than the {limit:,} that are allowed: "
                "this is not a checkpoint of ours"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{path.parent} has no {path.name}: the checkpoint is incomplete; fetch it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path, _TEXT_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedCheckpointError(
            f"{path} is not UTF-8 text (byte {error.start}): fetch it again"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number in JSON")

    text = _read_text(path)
    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(
            f"{path} is not valid JSON ({error}): fetch the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path / CONFIG)
    found = config.get("format_version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise CheckpointError(f"{path / CONFIG} has no whole number format_version: not a checkpoint of ours")
    if found > FORMAT_VERSION:
        raise CheckpointError(
            f"{path / CONFIG} has format {found}, newer than the {FORMAT_VERSION} this release reads: "
            "upgrade score-zoo"
        )
    digest = config.get("weights_sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise DamagedCheckpointError(
            f"{path / CONFIG} has no valid weights_sha256: fetch the checkpoint again"
        )
    return config


def _upgrade(
    path: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    for version in range(config["format_version"], FORMAT_VERSION):
        if version not in _UPGRADES:
            raise CheckpointError(
                f"{path / CONFIG} has format {version}, which this release can no longer read: "
                "fetch a newer version of the checkpoint"
            )
        config, weights = _UPGRADES[version](config, weights)
        config = {**config, "format_version": version + 1}
    return config, weights


_USES = {
    "denoiser": "it is for Denoiser and zoo denoise",
    "score-dynamics": "it is for ScoreDynamics and zoo rollout",
}


def _check_config(path: Path, config: dict[str, Any], kind: str | None) -> None:
    where = path / CONFIG
    rules: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("kind", f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
        ("name", "a name", lambda value: isinstance(value, str) and value.strip() != ""),
        ("version", "a version X.Y.Z", lambda v: isinstance(v, str) and bool(_VERSION.fullmatch(v))),
        ("units", "an object", lambda value: isinstance(value, dict)),
    ]
    for key, what, ok in rules:
        if key not in config:
            raise CheckpointError(f"{where} has no {key!r}: it must be {what}")
        if not ok(config[key]):
            raise CheckpointError(f"{where} has {key} = {json.dumps(config[key])[:80]}: it must be {what}")
    if kind is not None and config["kind"] != kind:
        raise CheckpointError(
            f"{path} is a {config['kind']} checkpoint, not a {kind}: {_USES[config['kind']]}"
        )


def _read_weights(path: Path, digests: set[str | None]) -> dict[str, torch.Tensor]:
    where = path / WEIGHTS
    if not _exists(where):
        for pickle in sorted(entry for entry in path.iterdir() if entry.suffix in PICKLES):
            raise CheckpointError(_pickle_refused(pickle))
    data = _read_bytes(where, _WEIGHTS_LIMIT)
    _check_digest(where, data, digests)

    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        weights: dict[str, torch.Tensor] = parse(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(
            f"{where} is not a readable safetensors file ({error}): fetch the checkpoint again"
        ) from error
    _check_tensors(where, weights)
    return weights


def _check_digest(where: Path, data: bytes, digests: set[str | None] | set[str]) -> None:
    found = hashlib.sha256(data).hexdigest()
    for expected in digests:
        if expected != found:
            raise DamagedCheckpointError(
                f"{where} is damaged or was tampered with (sha256 {found[:12]}…, expected "
                f"{str(expected)[:12]}…): fetch the checkpoint again"
            )


def _check_tensors(where: Path, weights: Mapping[str, torch.Tensor]) -> None:
    import torch

    if not weights:
        raise CheckpointError(f"{where} holds no tensors: fetch or train the checkpoint again")
    for key, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where} has NaN or infinite values in {key}: the weights cannot be used")


# -- writing ---------------------------------------------------------------------------------


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    *,
    metrics: Mapping[str, Any] | None = None,
    card: str = "",
) -> Path:
    """Write a checkpoint folder in one piece.

    The files go to a new folder beside the target, which then takes the target's place in one
    step: whoever kills this process finds the old checkpoint or the new one.  An existing folder
    is replaced only if it holds nothing but a checkpoint.

    Args:
        folder: where to write; parents are made as needed.
        config: `kind`, `name`, `version`, `units` and what the model needs; `format_version` and
            `weights_sha256` are filled in here.
        weights: tensors of any device; stored as contiguous CPU tensors of their own dtype.
        metrics: what was measured (empty if nothing yet).
        card: text of `README.md`.

    Returns:
        The folder.

    Raises:
        CheckpointError: an invalid config, non-finite weights, a folder with other files in it,
            a full disk or a place that cannot be written.
    """
    from safetensors.torch import save as serialise

    target = Path(folder).expanduser()
    _check_tensors(target / WEIGHTS, weights)
    # Clones, because safetensors refuses tensors that share memory.
    data = serialise({key: value.detach().cpu().clone().contiguous() for key, value in weights.items()})
    complete = {
        **config,
        "format_version": FORMAT_VERSION,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    _check_config(target, complete, None)
    contents = {
        CONFIG: to_json(complete, target / CONFIG).encode(),
        WEIGHTS: data,
        CARD: card.encode(),
        METRICS: to_json(metrics or {}, target / METRICS).encode(),
    }
    target = target.resolve()  # a link keeps pointing where it did
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, content in contents.items():
            _write_synced(temporary / name, content)
        put_in_place(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def to_json(data: Mapping[str, Any], where: str | os.PathLike[str] = "data") -> str:
    """`data` as the JSON text that all our files use: sorted, indented, one newline at the end.

    Raises:
        CheckpointError: something JSON cannot hold, such as NaN or an array.
    """
    try:
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {os.fspath(where)} as JSON: {error}") from None
    return text + "\n"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace one file in one step, through a temporary name in the same folder.

    Raises:
        CheckpointError: a full disk or a place that cannot be written.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        _write_synced(temporary, text.encode())
        os.replace(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave a renamed but empty file


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
    return CheckpointError(f"cannot write {path}: {error.strerror or error}; {advice}")


def check_replaceable(target: Path, also: Collection[str] = ()) -> None:
    """That a folder is not there, or holds nothing but a checkpoint, and files named ``also``.

    Raises:
        CheckpointError: something of the user's is in the way.
    """
    if not _exists(target):
        return
    if not target.is_dir():
        raise CheckpointError(f"cannot write the checkpoint to {target}: a file of that name is in the way")
    ours = {CONFIG, WEIGHTS, CARD, METRICS, *also}
    others = sorted(
        entry.name
        for entry in target.iterdir()
        if entry.name not in ours and not (entry.name.startswith(".") and entry.name.endswith(".tmp"))
    )
    if others:
        raise CheckpointError(
            f"cannot replace {target}: it also holds {_some(others)}; choose a new or an empty folder"
        )


def put_in_place(new: Path, target: Path) -> None:
    """Give a folder the name of another, which it replaces; what was there may be left under the old name."""
    if not target.exists():
        os.rename(new, target)
        return
    if _exchange(new, target):
        return  # the old folder now has the temporary name, and the caller removes that
    old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old.tmp"
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux, macOS); False where it cannot."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        one, two = os.fsencode(first), os.fsencode(second)
        if sys.platform == "linux":
            at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return bool(libc.renameat2(at_cwd, one, at_cwd, two, swap) == 0)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(one, two, 2) == 0)  # RENAME_SWAP
    return False
