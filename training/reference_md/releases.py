"""What walkers on a flattened surface visited and released, and their bias; without OpenMM."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.reference_md.segments import BIAS, GAS_CONSTANT, LONG_PREFIX, NM, Record, read_record
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """A stretch of a walker, and the paths of plain MD that were released from it.

    Attributes
    ----------
    name : of its file.
    visited : (n, 2) torsions of the walker, degrees, at equal times.
    bias : (n,) V / kT there.
    paths : (n_paths, n_frames, n_atoms, 3) float32, Å; the walker was cloned at the frame in the middle.
    released : (n_paths,) V / kT there.
    long_paths, long_of : (n_long, n_long_frames, n_atoms, 3) float32, Å, those that went on for longer, and
        (n_long,) which ones of ``paths`` they are; None in blocks made before any went on.
    dt : ps between the frames of a path.
    kt : kJ/mol.
    every : ps between what was visited.
    walker : its number.
    bias_sha256 : of the bias that it felt, see `Bias.sha256`.
    """

    name: str
    visited: Array
    bias: Array
    paths: npt.NDArray[np.float32]
    released: Array
    long_paths: npt.NDArray[np.float32]
    long_of: npt.NDArray[np.int64] | None
    dt: float
    kt: float
    every: float
    walker: int
    bias_sha256: str


def read_blocks(folder: Path, names: Sequence[str] = ("flat-*",)) -> list[Block]:
    """The blocks of a folder whose names match one of the patterns.

    Raises
    ------
    StructureError : a pattern that no block matches, a block that is damaged, or blocks that differ in their
        paths.
    """
    present = sorted(folder.glob("*.npz"))
    for name in names:
        if not fnmatch.filter((path.stem for path in present), name):
            raise StructureError(f"{folder} has no block {name}: give the output of flattened MD")
    files = [p for p in present if any(fnmatch.fnmatch(p.stem, name) for name in names)]
    found = []
    for path in files:
        try:
            record = read_record(path)
            long = read_record(long_path(path)) if record.provenance.get("long_of") else None
            found.append(_block(path.stem, record, long))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StructureError(f"{path} is no block of flattened MD: {error}") from None
        if _kind(found[-1]) != _kind(found[0]):
            raise StructureError(
                f"{path} is not like {files[0].name}: it has other atoms, times, temperature or bias"
            )
    return found


def _kind(block: Block) -> tuple[object, ...]:
    return block.paths.shape[1:], block.dt, block.kt, block.every, block.bias_sha256


def long_path(path: Path) -> Path:
    """The file of the clones of a block that went on."""
    return path.with_name(path.name.replace("flat-", LONG_PREFIX, 1))


def _block(name: str, record: Record, long: Record | None) -> Block:
    """`KeyError`, `TypeError` or `ValueError` say what is wrong."""
    told: dict[str, Any] = record.provenance
    kt = GAS_CONSTANT * float(told["protocol"]["production"]["temperature_k"])
    walk = np.array(told["visited"], dtype=np.float64)
    released = np.array(told["bias_kj_mol"], dtype=np.float64)
    n = 2 * len(released)
    if released.ndim != 1 or n == 0 or told["pieces"] != n or len(record.pos_nm) % n:
        raise ValueError(f"{len(record.pos_nm)} frames are not the pairs of {len(released)} releases")
    if walk.ndim != 2 or walk.shape[1] != 3 or not len(walk):
        raise ValueError("what the walker visited is no list of phi, psi and bias")
    if not (np.isfinite(walk).all() and np.isfinite(released).all() and 0 < kt < np.inf):
        raise ValueError("a bias, an angle or the temperature is no number")
    paths = _through(record.pos_nm, n)
    long_of, long_paths = None, paths[:0, :0]
    if "long_of" in told:
        long_of = np.array(told["long_of"], dtype=np.int64)
    if long is not None and long_of is not None:
        if long_of.ndim != 1 or not np.isin(long_of, np.arange(n // 2)).all():
            raise ValueError("long_of is no list of releases")
        if long.provenance["long_of"] != told["long_of"] or long.provenance["pieces"] != 2 * len(long_of):
            raise ValueError("the clones that went on are of another block")
        if long.pos_nm.shape[1:] != record.pos_nm.shape[1:] or len(long.pos_nm) % (2 * len(long_of)):
            raise ValueError("the clones that went on have other atoms, or not the same length")
        long_paths = _through(long.pos_nm, 2 * len(long_of))
        more = (long_paths.shape[1] - paths.shape[1]) // 2
        if more < 0 or not np.allclose(
            long_paths[:, more : more + paths.shape[1]], paths[long_of], atol=0.01
        ):
            raise ValueError("the clones that went on are not those of the block")
    return Block(
        name=name,
        visited=walk[:, :2],
        bias=walk[:, 2] / kt,
        paths=paths,
        released=released / kt,
        long_paths=long_paths,
        long_of=long_of,
        dt=record.dt_ps,
        kt=kt,
        every=float(told["walker"]["visited_every_ps"]),
        walker=int(told["walker"]["number"]),
        bias_sha256=str(told["bias_sha256"]),
    )


def _through(pos_nm: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """Paths (n / 2, n_frames, n_atoms, 3), Å, of n clones: the second of a pair backwards, then the other."""
    pieces = (pos_nm * np.float32(NM)).reshape(n, -1, *pos_nm.shape[1:])
    return np.concatenate([pieces[1::2, :0:-1], pieces[::2]], axis=1)


@dataclass(frozen=True)
class Bias:
    """The bias of the first two torsions.

    Attributes
    ----------
    kj_mol : (n, n) at the angles 0, 360 / n, ... degrees.
    ridge : where the barrier of the first torsion is, and how far it reaches to either side, degrees.
    learned_ps : MD that it took to learn.
    """

    kj_mol: Array
    ridge: tuple[float, float]
    learned_ps: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> Bias:
        """Of a folder of flattened MD.

        Raises
        ------
        StructureError : there is none, or it makes no sense.
        """
        path = folder / BIAS
        try:
            data = json.loads(path.read_text())
            grid = np.array(data["kj_mol"], dtype=np.float64)
            center, width = (float(each) for each in data["ridge_degrees"])
            if grid.ndim != 2 or len(set(grid.shape)) != 1 or not np.isfinite([*grid.ravel(), center]).all():
                raise ValueError("kj_mol is not a square table of numbers")
            learned = float(data["metadynamics"]["length_ps"]) if "metadynamics" in data else 0.0
            if not 0 < width < 180:
                raise ValueError(f"a ridge cannot reach {width} degrees to either side")
        except FileNotFoundError:
            raise StructureError(f"{path} does not exist: learn the bias first (--learn)") from None
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise StructureError(f"{path} cannot be read as a bias: {error}") from None
        return cls(grid, (center, width), learned)

    @property
    def sha256(self) -> str:
        """By which blocks say under which bias they were made."""
        text = json.dumps([self.kj_mol.tolist(), list(self.ridge)])
        return hashlib.sha256(text.encode()).hexdigest()

    def on_ridge(self, angle: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether values of the first torsion (degrees) are on the barrier: there walkers are cloned."""
        center, width = self.ridge
        away = (np.asarray(angle, dtype=np.float64) - center + 180.0) % 360.0 - 180.0
        return np.asarray(np.abs(away) <= width)

    def beyond(self, angle: float) -> int:
        """1 where the first torsion (degrees) is above the barrier, -1 below, 0 on it."""
        if self.on_ridge(angle):
            return 0
        return 1 if (angle - self.ridge[0]) % 360.0 < 180.0 else -1

    def ridge_weight(self, angles: Array, kt: float) -> Array:
        """exp(-V / kT) of angles (..., 2) in degrees on the ridge, 0 beside it; kt in kJ/mol."""
        return np.where(self.on_ridge(angles[..., 0]), np.exp(-self.at(angles) / kt), 0.0)

    def at(self, angles: Array) -> Array:
        """(...,) kJ/mol of angles (..., 2) in degrees, linear between the points of the grid."""
        grid, n = self.kj_mol, len(self.kj_mol)
        x = (np.asarray(angles) % 360.0) * (n / 360.0)
        low = np.floor(x).astype(np.int64)
        f, (i, j) = x - low, (low[..., 0] % n, low[..., 1] % n)
        k, m = (i + 1) % n, (j + 1) % n
        a, b = f[..., 0], f[..., 1]
        return np.asarray(
            (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, m])
            + a * ((1 - b) * grid[k, j] + b * grid[k, m])
        )  # fmt: skip


def read_flattened(folder: Path, names: Sequence[str] = ("flat-*",)) -> tuple[list[Block], Bias]:
    """Blocks of a folder, see `read_blocks`, and the bias that its walkers felt.

    Raises
    ------
    StructureError : blocks or bias cannot be read, or do not belong together.
    """
    blocks, bias = read_blocks(folder, names), Bias.read(folder)
    if bias.sha256 != blocks[0].bias_sha256:
        raise StructureError(f"the blocks in {folder} were made with another bias than the one there")
    return blocks, bias


def simulated_ps(blocks: Sequence[Block], bias: Bias) -> float:
    """MD behind blocks, ps: the learning of the bias, what walkers went, and what they released."""
    total = bias.learned_ps
    for b in blocks:
        n_steps = len(b.paths) * (b.paths.shape[1] - 1)
        n_steps += len(b.long_paths) * max(b.long_paths.shape[1] - b.paths.shape[1], 0)
        total += len(b.visited) * b.every + n_steps * b.dt
    return float(total)
