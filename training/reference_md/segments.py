"""The file format of reference MD: one ``.npz`` for each segment, readable without OpenMM.

See README.md for the keys.  Frames and the state from which a segment is continued are in one file,
which is replaced as a whole, so they always belong together.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.packed_positions import packed, unpacked
from zoo.errors import StructureError, ZooError

NM = 10.0  # Å in one nanometre
GAS_CONSTANT = 0.008314462618  # kJ/mol/K
FRAME_INTERVAL = 0.2  # ps
TOPOLOGY = "topology.pdb"
BIAS = "bias.json"  # of walkers on a flattened surface, see `flattened`
LONG_PREFIX = "long-"  # begins the names of files of clones that went on, see `flattened`
MAX_FILE_SIZE = 4 << 30  # of the uncompressed arrays: far beyond any segment, and it still fits into memory


@dataclass(frozen=True)
class Segment:
    """One uninterrupted piece of MD of a solute.

    Attributes:
        name: the file's name without its ending; all pieces of a file of `flattened` bear it.
        positions: (n_frames, n_atoms, 3) float32, Å, the molecule whole and never wrapped.
        dt: time between frames, ps.
        seed: the torsion angles (degrees) at which the segment was built.
        path: its file.
    """

    name: str
    positions: npt.NDArray[np.float32]
    dt: float
    seed: tuple[float, ...]
    path: Path


@dataclass
class Record:
    """All that a segment's file holds, as it is on disk (nanometres, picoseconds)."""

    pos_nm: npt.NDArray[np.float32]
    dt_ps: float
    seed: tuple[float, ...]
    box_nm: float
    n_atoms_total: int
    provenance: dict[str, Any] = field(default_factory=dict)
    state_xml: str = ""


def segment_path(folder: Path, number: int) -> Path:
    """The file of segment ``number``."""
    return folder / f"segment-{number:03d}.npz"


def read_segments(folder: str | os.PathLike[str]) -> list[Segment]:
    """All segments of a folder, finished or still growing, in the order of their names.

    Clones that went on (``long-*``) are left out: their beginnings are those of clones of their block.

    Raises:
        zoo.StructureError: there is no segment, one is damaged, or they are not of one molecule.
    """
    paths = sorted(p for p in Path(folder).glob("*.npz") if not p.name.startswith(LONG_PREFIX))
    if not paths:
        what = "has no *.npz in it" if Path(folder).is_dir() else "is not a folder"
        raise StructureError(f"{folder} {what}: give the output folder of training.reference_md")
    segments = []
    for path in paths:
        record = read_record(path)
        positions = record.pos_nm * np.float32(NM)
        for part in np.split(positions, _n_pieces(record, path)):
            segments.append(Segment(path.stem, part, record.dt_ps, record.seed, path))
        n_first, n_atoms = segments[0].positions.shape[1], positions.shape[1]
        if n_atoms != n_first:
            raise StructureError(
                f"{path} has {n_atoms} atoms, {paths[0].name} has {n_first}: one molecule per folder"
            )
    return segments


def _n_pieces(record: Record, path: Path) -> int:
    """How many pieces of MD, which do not go on into each other, a file holds."""
    n = record.provenance.get("pieces", 1)
    if type(n) is not int or n < 1 or len(record.pos_nm) % n:
        raise StructureError(
            f"{path} says that its {len(record.pos_nm)} frames are {n} pieces: it is damaged"
        )
    return n


def read_record(path: Path) -> Record:
    """One file, checked.

    Files without provenance and state are read too, but cannot be continued.

    Raises:
        zoo.StructureError: not a segment, damaged, or with values that make no sense.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_FILE_SIZE:
                raise ValueError(f"it unpacks to {size / 2**30:.0f} GiB")
        with np.load(path, allow_pickle=False) as data:
            arrays: dict[str, npt.NDArray[Any]] = {name: data[name] for name in data.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # a member that is not an .npy file comes as bytes
                raise ValueError(f"{name} is not an array")
        return _checked(arrays)
    except KeyError as error:
        raise StructureError(f"{path} is not a segment of reference MD: it has no {error}") from None
    except FileNotFoundError:
        raise StructureError(f"{path} does not exist") from None
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, RuntimeError, MemoryError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"{path} cannot be read as a segment of reference MD: {reason}") from None


def write_record(path: Path, record: Record, *, compact: bool = False, state: bool | None = None) -> None:
    """Replace ``path`` by a complete file, or leave it as it was.

    Args:
        path: the file.
        record: what goes into it.
        compact: positions to 0.0001 nm: for keeping.
        state: with the state to continue from; unless told otherwise only if not ``compact``.

    Raises:
        ValueError: see `packed`.
        zoo.ZooError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    positions = packed(record.pos_nm) if compact else {"pos_nm": record.pos_nm.astype(np.float32, copy=False)}
    arrays: dict[str, Any] = {
        **positions,
        "dt_ps": np.float64(record.dt_ps),
        "seed": np.asarray(record.seed, dtype=np.float64),
        "box_nm": np.float64(record.box_nm),
        "n_atoms_total": np.int64(record.n_atoms_total),
        "provenance": np.array(json.dumps(record.provenance)),
        # Bytes, not a string array: numpy would take four bytes for each character.
        "state_xml": np.frombuffer(record.state_xml.encode(), dtype=np.uint8),
    }
    if compact if state is None else not state:
        del arrays["state_xml"]
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ZooError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _checked(arrays: dict[str, npt.NDArray[Any]]) -> Record:
    """A record of the arrays of a file; `ValueError` says what is wrong with them."""
    positions = unpacked(arrays) if "pos_change" in arrays else arrays["pos_nm"]
    if positions.ndim != 3 or positions.shape[2] != 3 or 0 in positions.shape:
        raise ValueError(f"pos_nm has the shape {positions.shape}, not (n_frames, n_atoms, 3)")
    if positions.dtype.kind != "f":
        raise ValueError(f"pos_nm is of type {positions.dtype}, not float32")
    if not np.isfinite(positions).all():
        frame = int(np.argwhere(~np.isfinite(positions))[0, 0])
        raise ValueError(f"pos_nm is not finite in frame {frame}")
    dt, box, n_total = (_number(arrays[key], key) for key in ("dt_ps", "box_nm", "n_atoms_total"))
    seed = np.atleast_1d(np.asarray(arrays["seed"], dtype=np.float64))
    if seed.ndim != 1 or not np.isfinite(seed).all():
        raise ValueError("seed is not a list of angles")
    if n_total < positions.shape[1]:
        raise ValueError(f"n_atoms_total is {n_total:.0f}, fewer than the {positions.shape[1]} of pos_nm")
    provenance = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
    if not isinstance(provenance, dict):
        raise ValueError("provenance is not a JSON object")
    state = arrays["state_xml"].tobytes().decode() if "state_xml" in arrays else ""
    return Record(
        positions.astype(np.float32, copy=False),
        dt,
        tuple(float(s) for s in seed),
        box,
        int(n_total),
        provenance,
        state,
    )


def _number(array: npt.NDArray[Any], key: str) -> float:
    if array.size != 1:
        raise ValueError(f"{key} is not one number")
    value = float(array.reshape(()))
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{key} is {value}, not a positive number")
    return value
