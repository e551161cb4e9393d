"""Trajectories from files, as the positions of a model's sites at the interval of its steps."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoo.analysis.packed_positions import unpacked
from zoo.errors import MissingExtraError, StructureError
from zoo.molecules.molecule import Molecule
from zoo.molecules.sources import NM
from zoo.molecules.start import load_molecule, load_start

if TYPE_CHECKING:
    import mdtraj

Positions = npt.NDArray[np.float32]

#: Formats whose frames carry their times; MDTraj numbers the frames of others.
_TIMED = frozenset([".xtc", ".trr", ".h5", ".hdf5", ".nc", ".netcdf", ".ncdf", ".gro"])
#: Formats that say which atoms they hold.
_WITH_ATOMS = frozenset([".pdb", ".ent", ".gro", ".h5", ".hdf5"])
_SEGMENT, _TOPOLOGY = ".npz", "topology.pdb"
_CHUNK = 1000
#: Relative; times in XTC files are single precision.
_TOLERANCE = 1e-3
_LARGEST_SEGMENT = 8 << 30


@dataclass(frozen=True)
class Read:
    """One trajectory.

    Attributes
    ----------
    path : its file.
    positions : (n_frames, n_sites, 3) float32, Å, the molecule whole.
    every : frames of the file from one of these to the next.
    """

    path: Path
    positions: Positions
    every: int


def read_reference(
    path: Path,
    molecule: Molecule,
    lag_time: float,
    *,
    topology: Path | None = None,
    interval: float | None = None,
    labels_like: Any = None,
) -> Read:
    """MD of the molecule, alone or in solvent, thinned to one frame per ``lag_time`` (ps).

    The molecule is found in the first frame by elements and bonds, as by `load_start`; the same atoms
    are then taken from every frame, and made whole across the periodic box.

    Parameters
    ----------
    path : anything MDTraj reads, or ``segment-*.npz`` with ``pos_nm`` (n_frames, n_atoms, 3) in
        nanometres, or compact, and ``dt_ps``, whose topology is ``topology.pdb`` beside it unless given.
    topology : PDB or other file that names the atoms, for formats that do not.
    interval : ps between the frames of the file; by default what the file says.
    labels_like : (n_sites, 3) Å, see ``reference`` of `load_start`.

    Raises
    ------
    StructureError : unreadable, another molecule, no or uneven times, an interval that does not divide
        ``lag_time``, fewer than two frames at that interval.
    MissingExtraError : HDF5 without PyTables.
    """
    if not path.exists():
        raise StructureError(f"{path}: there is no such file")
    if path.suffix.lower() == _SEGMENT:
        xyz, own = _segment(path)
        whole = _topology(topology if topology is not None else path.with_name(_TOPOLOGY), path)
        first = _trajectory(xyz[:1], whole, path)
        every = _stride(path, interval if interval is not None else own, lag_time)
        atoms = _atoms(first, molecule, path, labels_like)
        return _checked(path, xyz[::every][:, atoms] * np.float32(NM), every, lag_time)
    top = None if topology is None else _topology(topology, path)
    if top is None and path.suffix.lower() not in _WITH_ATOMS:
        raise StructureError(f"{path} does not say which atoms it holds: give a PDB of them with --topology")
    first = next(_frames(path, top, 20))
    step = interval if interval is not None else _interval(first, path)
    every = _stride(path, step, lag_time)
    atoms = _atoms(first[0], molecule, path, labels_like)
    parts: list[Positions] = []
    times: list[npt.NDArray[np.float64]] = []
    for chunk in _frames(path, top, _CHUNK, every, atoms):
        # MDTraj sorts nothing: the atoms are in the order asked for only if sliced by us
        parts.append(_whole(chunk, molecule) * np.float32(NM))
        times.append(np.asarray(chunk.time, dtype=np.float64))
    if interval is None:
        _even(np.concatenate(times), lag_time, path)
    return _checked(path, np.concatenate(parts), every, lag_time)


def reference_molecule(path: Path, topology: Path | None = None) -> Molecule:
    """The one molecule, with all its atoms, that a trajectory is of, for models of many molecules.

    Raises
    ------
    StructureError : unreadable, or not one molecule beside water and ions.
    """
    if not path.exists():
        raise StructureError(f"{path}: there is no such file")
    if path.suffix.lower() == _SEGMENT:
        xyz, _ = _segment(path)
        whole = _topology(topology if topology is not None else path.with_name(_TOPOLOGY), path)
        return load_molecule(_trajectory(xyz[:1], whole, path))
    top = None if topology is None else _topology(topology, path)
    if top is None and path.suffix.lower() not in _WITH_ATOMS:
        raise StructureError(f"{path} does not say which atoms it holds: give a PDB of them with --topology")
    return load_molecule(next(_frames(path, top, 1)))


def frame_interval(path: Path, topology: Path | None = None, option: str = "--reference-interval") -> float:
    """ps between the frames of a trajectory, by what its first frames say.

    Raises
    ------
    StructureError : unreadable, one frame only, or a file that says nothing of times.
    """
    if path.suffix.lower() == _SEGMENT:
        return _segment(path)[1]
    top = None if topology is None else _topology(topology, path)
    return _interval(next(_frames(path, top, 20)), path, option)


def read_rollout(path: Path, molecule: Molecule, lag_time: float) -> Read:
    """A trajectory that `zoo rollout` wrote: the sites in the model's order, ``lag_time`` ps apart.

    Raises
    ------
    StructureError : unreadable, other atoms, another interval, fewer than two frames.
    """
    if not path.exists():
        raise StructureError(f"{path}: there is no such file")
    timed = path.suffix.lower() in _TIMED
    own = None if timed else own_report(path)
    if own is not None and not math.isclose(own[1], lag_time, rel_tol=_TOLERANCE):
        raise StructureError(
            f"{path} has frames every {own[1]:g} ps, says {own[0]}, and the checkpoint takes steps of "
            f"{lag_time:g} ps; give the output of zoo rollout with this checkpoint"
        )
    topology = None if path.suffix.lower() in _WITH_ATOMS else molecule.topology()
    parts, times = [], []
    try:
        for chunk in _frames(path, topology, _CHUNK):
            names = [atom.name for atom in chunk.topology.atoms]
            if names != list(molecule.site_names):
                raise _OtherAtomsError(path, len(names), molecule.n_sites)
            parts.append(np.asarray(chunk.xyz, dtype=np.float32) * np.float32(NM))
            times.append(np.asarray(chunk.time, dtype=np.float64))
    except _OtherAtomsError as error:
        raise StructureError(
            f"{path} holds {error.n_atoms} atoms that are not the {molecule.n_sites} the checkpoint moves "
            f"({', '.join(molecule.site_labels)}); give the output of zoo rollout with this checkpoint"
        ) from None
    if timed:
        _even(np.concatenate(times), lag_time, path)
    return _checked(path, np.concatenate(parts), 1, lag_time)


def own_report(path: Path) -> tuple[Path, float] | None:
    """The report that `zoo rollout` wrote beside a trajectory, and the ps between frames by it, if any."""
    run = re.sub(r"-[0-9]{2,}$", "", path.stem)  # run-00.dcd is walker 0 of the run of run.json
    for report in (path.with_name(f"{stem}.json") for stem in (path.stem, run)):
        step = _reported(report, path.suffix)
        if step is not None:
            return report, step
    return None


def _reported(report: Path, suffix: str) -> float | None:
    """The lag time in the report of a rollout whose files have this suffix; None if it is nothing such."""
    try:
        data = json.loads(report.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or isinstance(data["lag_time_ps"], bool | str):
            return None
        step = float(data["lag_time_ps"])
        # beside run.xtc, run.dcd is something that the user made of it, maybe with fewer frames
        files = [Path(each).suffix.lower() for each in data.get("files") or []]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if files and suffix.lower() not in files:
        return None
    return step if math.isfinite(step) and step > 0 else None


def rollout_files(given: Sequence[Path]) -> list[Path]:
    """The files of rollouts: ``run.xtc`` stands for ``run-00.xtc``, ``run-01.xtc``, ... where these exist."""
    found: list[Path] = []
    for path in given:
        walkers = sorted(
            (each for each in path.parent.glob(f"*{path.suffix}") if _walker(each, path) is not None),
            key=lambda each: _walker(each, path) or 0,
        )
        found += [path] if path.exists() or not walkers else walkers
    return found


def _walker(path: Path, run: Path) -> int | None:
    number = path.stem.removeprefix(f"{run.stem}-") if path.stem.startswith(f"{run.stem}-") else ""
    return int(number) if number.isascii() and number.isdigit() else None


class _OtherAtomsError(StructureError):
    """A file whose number of atoms is not that of its topology."""

    def __init__(self, path: Path, n_atoms: int, expected: int) -> None:
        self.n_atoms = n_atoms
        super().__init__(f"{path} has {n_atoms} atoms and its topology {expected}")


def _n_atoms(path: Path) -> int | None:
    """Atoms in the first frame of a trajectory; None if that cannot be told without a topology."""
    import mdtraj

    try:
        with mdtraj.open(str(path)) as file:
            frame = file.read(n_frames=1)
    except MemoryError:
        raise
    except Exception:  # as in `_frames`, which tells what is wrong
        return None
    shape = np.shape(frame[0] if isinstance(frame, tuple) else frame)
    return shape[1] if len(shape) == 3 and shape[0] else None


def _frames(
    path: Path, topology: mdtraj.Topology | None, chunk: int, stride: int = 1, atoms: Any = None
) -> Iterator[Any]:
    """Chunks of a trajectory, the atoms in the order given; at least one frame, or an error."""
    import mdtraj

    options: dict[str, Any] = {} if topology is None else {"top": topology}
    seen = False
    try:
        for part in mdtraj.iterload(str(path), chunk=chunk, stride=stride, **options):
            if not len(part):
                continue
            seen = True
            yield part if atoms is None else part.atom_slice(np.sort(atoms)).atom_slice(_order(atoms))
    except StructureError:
        raise
    except ImportError as error:
        raise MissingExtraError(f'cannot read {path} ({error}): pip install "score-zoo[hdf5]"') from error
    except MemoryError:
        raise
    except Exception as error:  # MDTraj's readers raise whatever they like
        # MDTraj's own words for this are about the shapes of arrays
        n_atoms = None if topology is None else _n_atoms(path)
        if topology is not None and n_atoms is not None and n_atoms != topology.n_atoms:
            raise _OtherAtomsError(path, n_atoms, topology.n_atoms) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"{path} cannot be read as a trajectory: {reason[:300]}") from None
    if not seen:
        raise StructureError(f"{path} has no frames")


def _order(atoms: Any) -> npt.NDArray[np.int64]:
    return np.asarray(np.argsort(np.argsort(atoms)), dtype=np.int64)


def _topology(path: Path, trajectory: Path) -> Any:
    import mdtraj

    if not path.exists():
        if path.name == _TOPOLOGY and trajectory.suffix.lower() == _SEGMENT:
            raise StructureError(f"{trajectory}: there is no {path} beside it; give one with --topology")
        raise StructureError(f"{path}: there is no such file")
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"{path} cannot be read as a topology: {reason[:300]}") from None


def _trajectory(xyz: Positions, topology: Any, path: Path) -> Any:
    import mdtraj

    if topology.n_atoms != xyz.shape[1]:
        raise StructureError(f"{path} has {xyz.shape[1]} atoms and its topology {topology.n_atoms}")
    return mdtraj.Trajectory(xyz, topology)


def _segment(path: Path) -> tuple[Positions, float]:
    """Positions in nm and ps between frames of a segment file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST_SEGMENT:
                raise ValueError("it unpacks to more than 8 GiB")
        with np.load(path, allow_pickle=False) as data:
            compact = "pos_change" in data.files
            xyz = unpacked(dict(data)) if compact else np.asarray(data["pos_nm"], dtype=np.float32)
            step = float(data["dt_ps"])
        if xyz.ndim != 3 or xyz.shape[2] != 3 or 0 in xyz.shape:
            raise ValueError(f"pos_nm has the shape {xyz.shape}, not (n_frames, n_atoms, 3)")
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"dt_ps is {step}")
    except KeyError as error:
        raise StructureError(f"{path} is no segment of MD: it has no {error}") from None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise StructureError(f"{path} cannot be read as a segment of MD: {error}") from None
    return xyz, step


def _atoms(first: Any, molecule: Molecule, path: Path, labels_like: Any) -> npt.NDArray[np.int64]:
    """(n_sites,) which atoms of the file are the sites, from its first frame."""
    try:
        sites = load_start(first, molecule, labels_like)[0]
    except StructureError as error:
        text = str(error)
        named = text.removeprefix("Trajectory").removeprefix(":").strip()
        raise StructureError(f"{path}{' ' if named.startswith('does') else ': '}{named}") from None
    away = np.asarray(first.xyz[0], dtype=np.float64)[None] * NM - sites[:, None]
    if first.unitcell_vectors is not None:
        cell = np.asarray(first.unitcell_vectors[0], dtype=np.float64) * NM
        if abs(np.linalg.det(cell)) > 1.0:
            away = away - np.round(away @ np.linalg.inv(cell)) @ cell  # the molecule was made whole
    return np.asarray(np.argmin((away**2).sum(-1), axis=1), dtype=np.int64)


def _whole(chunk: Any, molecule: Molecule) -> Positions:
    """Positions in nm, each site at the image nearest to a site close to it in the molecule."""
    x = np.asarray(chunk.xyz, dtype=np.float32)
    if chunk.unitcell_vectors is None:
        return x
    cells = np.asarray(chunk.unitcell_vectors, dtype=np.float64)
    boxed = np.abs(np.linalg.det(cells)) > 1e-3
    if not boxed.any():
        return x
    x, cells = x.copy(), np.where(boxed[:, None, None], cells, 1e6 * np.eye(3))
    inverse = np.linalg.inv(cells)
    placed, left = [0], set(range(1, molecule.n_sites))
    while left:
        separation = molecule.site_separation[np.ix_(placed, sorted(left))]
        row, column = np.unravel_index(int(np.argmin(separation)), separation.shape)
        near, site = placed[int(row)], sorted(left)[int(column)]
        step = x[:, site].astype(np.float64) - x[:, near]
        images = np.round(np.einsum("fi,fij->fj", step, inverse))
        x[:, site] -= np.einsum("fi,fij->fj", images, cells).astype(np.float32)
        placed.append(site)
        left.remove(site)
    return x


def _interval(first: Any, path: Path, option: str = "--reference-interval") -> float:
    """ps between frames, from the times of the first ones."""
    times = np.asarray(first.time, dtype=np.float64)
    if path.suffix.lower() not in _TIMED or len(times) < 2 or not times[-1] > times[0]:
        if path.suffix.lower() in _TIMED and len(times) < 2:
            raise StructureError(f"{path} is too short: it has one frame")
        raise StructureError(f"{path} does not say how far apart its frames are: give {option} in ps")
    return float((times[-1] - times[0]) / (len(times) - 1))


def _stride(path: Path, step: float, lag_time: float) -> int:
    every = round(lag_time / step)
    if every < 1 or not math.isclose(every * step, lag_time, rel_tol=_TOLERANCE):
        raise StructureError(
            f"{path} has frames every {step:.6g} ps, which does not divide the checkpoint's steps of "
            f"{lag_time:g} ps: save MD at {lag_time:g} ps or a whole fraction of it"
        )
    return every


def _even(times: npt.NDArray[np.float64], wanted: float, path: Path) -> None:
    steps = np.diff(times)
    # single precision
    allowed = _TOLERANCE * wanted + 4e-7 * float(np.abs(times).max(initial=0.0))
    wrong = np.flatnonzero(np.abs(steps - wanted) > allowed)
    if len(wrong):
        k = int(wrong[0])
        raise StructureError(
            f"{path}: from time {times[k]:.6g} ps to the next frame are {steps[k]:.6g} ps, and {wanted:g} ps "
            "are needed throughout"
        )


def _checked(path: Path, positions: Positions, every: int, lag_time: float) -> Read:
    if len(positions) < 2:
        raise StructureError(
            f"{path} is too short: {len(positions)} frame{'s' * (len(positions) != 1)} {lag_time:g} ps apart"
        )
    return Read(path, np.ascontiguousarray(positions), every)
