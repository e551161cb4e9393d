"""Is a proposed structure still the molecule?  Bonds, handedness and clashes, all from the topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.molecules.molecule import Molecule, handedness

Array = npt.NDArray[np.float64]

NOT_FINITE, BOND, CHIRALITY, CLASH = "not finite", "bond", "chirality", "clash"
KINDS = (NOT_FINITE, BOND, CHIRALITY, CLASH)

#: Pairs with fewer bonds between them are held by bonds and angles, not by repulsion.
_FAR = 3
_HUGE = 1e50


@dataclass(frozen=True)
class Limits:
    """How far a structure may be from an ordinary one; set well outside what MD at 300 K does.

    In 41 000 frames of alanine dipeptide in water (AMBER14SB, 300 K) no bond is more than 0.152 Å
    from its mean, no two heavy atoms are nearer than 0.79 and no pair with a hydrogen nearer than
    0.595 (an intramolecular hydrogen bond) of the sum of their radii.
    """

    bond_tolerance: float = 0.25
    """Largest deviation of a bond from its reference length, Å."""
    clash_fraction: float = 0.6
    """Two heavy atoms at least 3 bonds apart clash below this fraction of the sum of van der Waals radii."""
    hydrogen_clash_fraction: float = 0.5
    """The same for pairs with a hydrogen, which a hydrogen bond brings closer."""


class Validity:
    """Checks structures of one molecule against its topology.

    Parameters
    ----------
    molecule
        Whose sites the positions are.
    bond_lengths : (n_site_bonds,) Å, reference lengths in the order of `molecule.site_bonds`.
    handedness : (n_walkers, n_centres) or (1, n_centres), +1 or -1
        Of each walker's start, in the order of `molecule.centres`; one row serves all walkers.
    limits
        What is still tolerated.

    Raises
    ------
    ValueError
        An array of the wrong shape: a bug of the caller.
    """

    def __init__(
        self,
        molecule: Molecule,
        bond_lengths: npt.ArrayLike,
        handedness: npt.ArrayLike,
        limits: Limits | None = None,
    ) -> None:
        self.molecule = molecule
        self.limits = limits or Limits()
        self.bond_lengths = np.asarray(bond_lengths, dtype=float)
        self.handedness = np.atleast_2d(np.asarray(handedness))
        if self.bond_lengths.shape != (len(molecule.site_bonds),):
            raise ValueError(f"{self.bond_lengths.shape} bond lengths for {len(molecule.site_bonds)} bonds")
        if self.handedness.ndim != 2 or self.handedness.shape[1] != len(molecule.centres):
            raise ValueError(f"{self.handedness.shape} handedness for {len(molecule.centres)} centres")
        self._bonds = np.array(molecule.site_bonds, dtype=np.int64).reshape(-1, 2)
        self._pairs = np.argwhere(np.triu(molecule.site_separation >= _FAR))
        self._nearest = self._contact_distances()

    def _contact_distances(self) -> Array:
        elements = self.molecule.site_elements
        radii = np.array([_vdw_radius(element) for element in elements])
        light = np.array([element == "H" for element in elements], dtype=bool)
        i, j = self._pairs[:, 0], self._pairs[:, 1]
        fraction = np.where(
            light[i] | light[j], self.limits.hydrogen_clash_fraction, self.limits.clash_fraction
        )
        nearest: Array = fraction * (radii[i] + radii[j])
        return nearest

    def check(self, positions: Array, walkers: Sequence[int] | None = None) -> list[str | None]:
        """For each structure None if it is fine, else what is wrong with it, the gravest first.

        Parameters
        ----------
        positions : (n, n_sites, 3) Å.
        walkers : n indices into the rows of `handedness`; None = row k for structure k.
            Without effect where there is one row for all.
        """
        positions = np.asarray(positions, dtype=float)
        reasons: list[str | None] = [None] * len(positions)
        # 1e100 Å is as good as infinite, and its square would overflow
        finite: npt.NDArray[np.bool_] = np.all(np.abs(positions) < _HUGE, axis=(1, 2))
        safe = np.where(finite[:, None, None], positions, 0.0)
        labels = self.molecule.site_labels

        i, j = self._pairs[:, 0], self._pairs[:, 1]
        squared = _squared_distances(safe, self._pairs)
        for k in np.flatnonzero((squared < self._nearest**2).any(axis=1)):
            worst = int(np.argmin(squared[k] / self._nearest**2))
            distance = float(np.sqrt(squared[k, worst]))
            reasons[k] = f"{CLASH} {labels[i[worst]]}-{labels[j[worst]]} {distance:.2f} Å"

        if self.molecule.centres:
            wanted = self._wanted(len(positions), walkers)
            flipped: npt.NDArray[np.bool_] = handedness(safe, self.molecule.centres) != wanted
            for k in np.flatnonzero(flipped.any(axis=1)):
                centre = self.molecule.centres[int(np.argmax(flipped[k]))][0]
                reasons[k] = f"{CHIRALITY} of {labels[centre]} inverted"

        lengths = np.sqrt(_squared_distances(safe, self._bonds))
        deviation = np.abs(lengths - self.bond_lengths)
        for k in np.flatnonzero((deviation > self.limits.bond_tolerance).any(axis=1)):
            worst = int(np.argmax(deviation[k]))
            first, second = self._bonds[worst]
            reasons[k] = f"{BOND} {labels[first]}-{labels[second]} {lengths[k, worst]:.2f} Å"

        for k in np.flatnonzero(~finite):
            reasons[k] = f"positions {NOT_FINITE}"
        return reasons

    def _wanted(self, n: int, walkers: Sequence[int] | None) -> npt.NDArray[np.int64]:
        if len(self.handedness) == 1:
            return self.handedness
        if walkers is None:
            if n != len(self.handedness):
                raise ValueError(f"{n} structures of {len(self.handedness)} walkers: say which")
            return self.handedness
        rows: npt.NDArray[np.int64] = self.handedness[np.asarray(walkers, dtype=np.int64)]
        return rows


def kind_of(reason: str) -> str:
    """Which of ``"bond"``, ``"clash"``, ``"chirality"``, ``"not finite"`` a reason is about.

    Raises
    ------
    ValueError
        The text is no reason that `Validity.check` gave.
    """
    for kind in KINDS:
        if reason.startswith((kind, f"positions {kind}")):
            return kind
    raise ValueError(f"not a reason for an invalid structure: {reason!r}")


def _squared_distances(positions: Array, pairs: npt.NDArray[np.int64]) -> Array:
    between = positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]]
    squared: Array = np.einsum("nkx,nkx->nk", between, between)
    return squared


def _vdw_radius(element: str) -> float:
    # Imported here so that networks can be trained where there is no ASE.
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.vdw import vdw_radii

    number = atomic_numbers[element]
    radius = float(vdw_radii[number]) if number < len(vdw_radii) else float("nan")
    # the table has gaps; a van der Waals radius is about 0.8 Å more than the covalent one
    return radius if np.isfinite(radius) else float(covalent_radii[number]) + 0.8
