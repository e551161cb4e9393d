"""What walkers on a flattened surface released: paths of equilibrium MD, and the bias; without OpenMM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.reference_md.segments import BIAS, GAS_CONSTANT, NM, read_record
from zoo.errors import StructureError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Release:
    """A path of plain MD through the place at which a walker was cloned.

    Attributes
    ----------
    positions : (n_frames, n_atoms, 3) float32, Å; the walker was cloned at the frame in the middle.
    dt : ps between frames.
    bias : V / kT at the middle.
    block : name of its file.
    """

    positions: npt.NDArray[np.float32]
    dt: float
    bias: float
    block: str


def read_releases(folder: Path, names: Sequence[str] = ("flat-*",)) -> list[Release]:
    """The releases of all blocks whose names match one of the patterns.

    Raises
    ------
    StructureError : no such block, one that is damaged, or one that holds no pairs.
    """
    paths = sorted({path for name in names for path in folder.glob(f"{name}.npz")})
    if not paths:
        raise StructureError(f"{folder} has no block {', '.join(names)}: give the output of flattened MD")
    found = []
    for path in paths:
        record = read_record(path)
        try:
            bias = np.array(record.provenance["bias_kj_mol"], dtype=np.float64)
            kt = GAS_CONSTANT * float(record.provenance["protocol"]["production"]["temperature_k"])
            n = 2 * len(bias)
            if "pairs" not in record.provenance or record.provenance["pieces"] != n or n == 0:
                raise ValueError("it holds no pairs of pieces")
            if len(record.pos_nm) % n or not np.isfinite(bias).all() or not kt > 0:
                raise ValueError(
                    f"{len(record.pos_nm)} frames are not {n} pieces, or their bias is no number"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise StructureError(f"{path} is no block of flattened MD: {error}") from None
        pairs = np.split(record.pos_nm * np.float32(NM), n)
        for k, v in enumerate(bias / kt):
            path_through = np.concatenate([pairs[2 * k + 1][:0:-1], pairs[2 * k]])
            found.append(Release(path_through, record.dt_ps, float(v), path.stem))
    return found


@dataclass(frozen=True)
class Bias:
    """The bias V / kT of two torsions, on a grid (n, n) at the angles 0, 360 / n, ... degrees."""

    grid: Array

    @classmethod
    def read(cls, folder: Path, temperature: float = 300.0) -> Bias:
        """Of a folder of flattened MD; see `read_bias`."""
        return cls(read_bias(folder) / (GAS_CONSTANT * temperature))

    def at(self, angles: Array) -> Array:
        """(...,) of angles (..., 2) in degrees, linear between the points of the grid."""
        n = len(self.grid)
        x = (np.asarray(angles) % 360.0) * (n / 360.0)
        low = np.floor(x).astype(np.int64)
        f, (i, j) = x - low, (low[..., 0] % n, low[..., 1] % n)
        k, m = (i + 1) % n, (j + 1) % n
        a, b = f[..., 0], f[..., 1]
        return np.asarray(
            (1 - a) * ((1 - b) * self.grid[i, j] + b * self.grid[i, m])
            + a * ((1 - b) * self.grid[k, j] + b * self.grid[k, m])
        )


def read_bias(folder: Path) -> Array:
    """(n, n) kJ/mol at the torsions 0, 360 / n, ... degrees, of a folder of flattened MD.

    Raises
    ------
    StructureError : there is none, or it is no square table of numbers.
    """
    path = folder / BIAS
    try:
        grid = np.array(json.loads(path.read_text())["kj_mol"], dtype=np.float64)
    except FileNotFoundError:
        raise StructureError(f"{path} does not exist: learn the bias first (--learn)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StructureError(f"{path} cannot be read as a bias: {error}") from None
    if grid.ndim != 2 or len(set(grid.shape)) != 1 or not np.isfinite(grid).all():
        raise StructureError(f"{path} is not a square table of numbers")
    return grid
