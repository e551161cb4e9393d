"""Where the demonstrations begin: a crystal seed with loose copper around it, iron with dislocation loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.build import bulk

FloatArray = npt.NDArray[np.float64]

#: Directions of the Burgers vectors 1/2<111> of bcc, one for each axis of the glide cylinders of a loop.
DIAGONALS = np.array([(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)]) / np.sqrt(3.0)
#: How many corners the polygon has that stands for a circular loop.
_CORNERS = 24


def seeded(
    cells: tuple[int, int, int], a: float, radius: float, swelling: float
) -> tuple[Atoms, npt.NDArray[np.bool_]]:
    """Fcc copper with a sphere in the middle at its own density and the rest at that of a melt.

    Parameters
    ----------
    cells : cubic unit cells along each axis.
    a, radius : Å, lattice parameter of the crystal and radius of the sphere.
    swelling : how much longer all distances from the middle are outside of the sphere.

    Returns
    -------
    The structure, and which of its atoms are in the sphere, (n_atoms,).
    """
    atoms = bulk("Cu", "fcc", a=a, cubic=True).repeat(cells)
    # The sphere is around the atom nearest to the middle, wherever that falls between the planes.
    middle = atoms.positions[np.linalg.norm(atoms.positions - 0.5 * atoms.cell.lengths(), axis=1).argmin()]
    arrow = atoms.positions - middle
    inside = np.linalg.norm(arrow, axis=1) < radius
    atoms.positions = middle + np.where(inside[:, None], arrow, swelling * arrow)
    atoms.set_cell(swelling * atoms.cell[:])
    atoms.positions += 0.5 * atoms.cell.lengths() - middle
    atoms.wrap()
    return atoms, inside


def looped(symbol: str, a: float, cells: tuple[int, int, int], loops: int, radius: float) -> Atoms:
    """A bcc crystal with vacancy loops: discs of atoms taken out, the crystal closed over the gap.

    The Burgers vectors 1/2<111> take turns among the four diagonals, and the loops are spread over the cell.
    Displacements are those of the solid angle (the leading term of linear elasticity), so that a
    minimisation has only the rest to do.

    Parameters
    ----------
    a, radius : Å, lattice parameter and radius of every loop.
    cells : cubic unit cells along each axis.

    Returns
    -------
    About as many atoms less as the discs hold; periodic everywhere.
    """
    atoms = bulk(symbol, "bcc", a=a, cubic=True).repeat(cells)
    lengths = atoms.cell.lengths()
    gap = 0.5 * np.sqrt(3.0) * a  # |1/2 [111]|, and three planes (111) are in it
    keep = np.ones(len(atoms), dtype=bool)
    shift = np.zeros((len(atoms), 3))
    for place, normal in zip(_spread(loops) * lengths, np.resize(DIAGONALS, (loops, 3)), strict=True):
        arrow = atoms.positions - place
        arrow -= lengths * np.round(arrow / lengths)
        height = arrow @ normal
        across = np.linalg.norm(arrow - height[:, None] * normal, axis=1)
        keep &= ~((np.abs(height - 0.05) < 0.5 * gap) & (across < radius))
        omega = solid_angle(arrow, normal, radius)
        shift -= gap * (omega / (4 * np.pi))[:, None] * normal
    atoms.positions += shift
    atoms = atoms[keep]
    atoms.wrap()
    return atoms


def solid_angle(points: FloatArray, normal: FloatArray, radius: float) -> FloatArray:
    """Signed solid angle, (n,) in -2 pi to 2 pi, under which points (n, 3) see a disc around the origin.

    Positive on the side that the normal points to.  The disc is a polygon of the same area, cut into
    triangles: van Oosterom & Strackee, IEEE Trans. Biomed. Eng. 30, 125 (1983).
    """
    first = np.cross(normal, [1.0, 0.0, 0.0] if abs(normal[0]) < 0.9 else [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    angle = 2 * np.pi * np.arange(_CORNERS + 1) / _CORNERS
    equal_area = radius * np.sqrt((2 * np.pi / _CORNERS) / np.sin(2 * np.pi / _CORNERS))
    rim = equal_area * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * np.cross(normal, first))
    total = np.zeros(len(points))
    a = -points
    length_a = np.linalg.norm(a, axis=1)
    for k in range(_CORNERS):
        b, c = rim[k] - points, rim[k + 1] - points
        length_b, length_c = np.linalg.norm(b, axis=1), np.linalg.norm(c, axis=1)
        numerator = np.einsum("ij,ij->i", a, np.cross(b, c))
        denominator = (
            length_a * length_b * length_c
            + np.einsum("ij,ij->i", a, b) * length_c
            + np.einsum("ij,ij->i", b, c) * length_a
            + np.einsum("ij,ij->i", c, a) * length_b
        )
        total += 2 * np.arctan2(numerator, denominator)
    return -total


def _spread(n: int) -> FloatArray:
    """n places in the unit cube, far from each other: an R-sequence, (n, 3) in 0..1."""
    ratio = 1.2207440846057596  # the real root of x**4 = x + 1
    return np.asarray((0.25 + np.outer(np.arange(n), ratio ** -np.arange(1.0, 4.0))) % 1.0)
