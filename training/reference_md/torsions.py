"""Torsion angles and handedness of a molecule: measuring and setting them.

Angles follow IUPAC: 0 is cis, 180 trans, and looking along the middle bond a clockwise turn of the
far end is positive (as in MDTraj).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def torsion(positions: npt.NDArray[np.floating], atoms: Sequence[int]) -> float:
    """The torsion angle (degrees, -180 to 180) of four atoms; positions (n_atoms, 3), any unit."""
    a, b, c, d = np.asarray(positions, dtype=np.float64)[list(atoms)]
    axis = c - b
    n1, n2 = np.cross(b - a, axis), np.cross(axis, d - c)
    return float(np.degrees(np.arctan2(np.dot(np.cross(n1, n2), axis) / np.linalg.norm(axis), n1 @ n2)))


def set_torsion(
    positions: npt.NDArray[np.floating], bonds: Iterable[tuple[int, int]], atoms: Sequence[int], angle: float
) -> Array:
    """Positions with the torsion of ``atoms`` turned to ``angle`` (degrees) about its middle bond.

    All atoms on the far side of that bond turn with the fourth one, so bond lengths, bond angles
    and all other torsions stay as they are.

    Raises:
        ValueError: the middle bond does not exist or is part of a ring.
    """
    x = np.array(positions, dtype=np.float64)
    _, b, c, d = atoms
    moving = _far_side(bonds, b, c)
    if d not in moving:
        raise ValueError(f"atom {d} is not bonded to the far side of the bond {b}-{c}")
    turn = np.radians(angle - torsion(x, atoms))
    axis = (x[c] - x[b]) / np.linalg.norm(x[c] - x[b])
    v = x[moving] - x[c]
    along = np.outer(v @ axis, axis)
    x[moving] = x[c] + along + np.cos(turn) * (v - along) + np.sin(turn) * np.cross(axis, v)
    return x


def handedness(positions: npt.NDArray[np.floating], atoms: Sequence[int]) -> float:
    """The sign (+1 or -1) of the volume spanned by a centre and three of its neighbours."""
    centre, *rest = np.asarray(positions, dtype=np.float64)[list(atoms)]
    return float(np.sign(np.linalg.det(np.array(rest) - centre)))


def _far_side(bonds: Iterable[tuple[int, int]], near: int, far: int) -> list[int]:
    """Atoms that stay connected with ``far`` when its bond to ``near`` is cut, ``far`` included."""
    neighbours: dict[int, set[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    if near not in neighbours.get(far, set()):
        raise ValueError(f"atoms {near} and {far} are not bonded")
    found, todo = {far}, [far]
    while todo:
        atom = todo.pop()
        for other in neighbours[atom] - found:
            if {atom, other} == {near, far}:
                continue
            found.add(other)
            todo.append(other)
    if near in found:
        raise ValueError(f"the bond between atoms {near} and {far} is in a ring")
    return sorted(found)
