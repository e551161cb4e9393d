"""A family of molecules: what a checkpoint that is not of one molecule knows about any of them.

Everything is told by classes of atoms (element and number of neighbours, ``C4``), so that it holds for
molecules that were not trained on, as long as each of their atoms has surroundings that were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import CheckpointError, StructureError
from zoo.molecules.molecule import Molecule

Array = npt.NDArray[np.float64]

#: Pairs with more bonds between them are told by clashes alone.
_BANDS = 3


@dataclass(frozen=True)
class Family:
    """What was measured on the training molecules, for any molecule of the family.

    Parameters
    ----------
    molecules : those trained on, as ``name (formula)``.
    environments : an element and its neighbours' elements, ``C(CHHH)``; others are refused.
    bond_lengths : Å, mean of each class of bonds, ``C4-H1``.
    rigid_bonds : the classes that the training data held at a fixed length.
    bands : Å, lowest and highest distance of a class of pairs by bonds between them, ``C4-C4-2``.
    edge : width of the bands that 99.9 % of held-out frames keep to, in those of the training.
    translation, rotation : (a, b), variance per axis and step is ``exp(a) * size**b``; the size is the mass
        in u for translation (Å²), and the moment of inertia of equal weights in Å² for rotation (rad²).
    example : one molecule of the family, see `Molecule.to_json`.
    """

    molecules: tuple[str, ...]
    environments: tuple[str, ...]
    bond_lengths: dict[str, float]
    rigid_bonds: tuple[str, ...]
    bands: dict[str, tuple[float, float]]
    edge: float = 1.0
    translation: tuple[float, float] = (-20.0, 0.0)
    rotation: tuple[float, float] = (-20.0, 0.0)
    example: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Lists, tables and numbers only; `from_json` gives the same family back."""
        data = asdict(self)
        for key, value in data.items():
            if isinstance(value, tuple):
                data[key] = list(value)
        data["bands"] = {key: list(band) for key, band in self.bands.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Family:
        """The family that `to_json` wrote.

        Raises
        ------
        CheckpointError : a key is missing or unknown, or an entry makes no sense.
        """
        if not isinstance(data, Mapping) or set(data) != {f.name for f in fields(cls)}:
            raise CheckpointError("config.json: family has missing or unknown keys")
        try:
            family = cls(
                molecules=tuple(str(m) for m in data["molecules"]),
                environments=tuple(str(e) for e in data["environments"]),
                bond_lengths={str(k): float(v) for k, v in data["bond_lengths"].items()},
                rigid_bonds=tuple(str(b) for b in data["rigid_bonds"]),
                bands={str(k): (float(v[0]), float(v[1])) for k, v in data["bands"].items()},
                edge=float(data["edge"]),
                translation=(float(data["translation"][0]), float(data["translation"][1])),
                rotation=(float(data["rotation"][0]), float(data["rotation"][1])),
                example=Molecule.from_json(data["example"]).to_json(),
            )
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointError(f"config.json: family is not valid: {error}") from None
        numbers = [*family.bond_lengths.values(), family.edge, *family.translation, *family.rotation]
        numbers += [distance for band in family.bands.values() for distance in band]
        if not all(map(math.isfinite, numbers)) or min([*family.bond_lengths.values(), family.edge]) <= 0:
            raise CheckpointError("config.json: family has numbers that are not finite or not positive")
        if not set(family.rigid_bonds) <= set(family.bond_lengths):
            raise CheckpointError("config.json: family has rigid bonds without a length")
        return family

    def check(self, molecule: Molecule, name: str) -> None:
        """Whether a molecule belongs to the family.

        Raises
        ------
        StructureError : it has an atom in surroundings that were not trained on.
        """
        strange = sorted({e for e in environments(molecule) if e not in self.environments})
        if strange:
            known = ", ".join(self.environments)
            raise StructureError(
                f"{molecule.formula} has atoms in surroundings that {name} was not trained on: "
                f"{', '.join(strange[:4])}{', ...' if len(strange) > 4 else ''} (it knows {known}); "
                f"train it on MD of this molecule first: zoo finetune {name} --trajectory ..."
            )
        missing = sorted(set(bond_classes(molecule)) - set(self.bond_lengths))
        if missing:
            raise StructureError(
                f"{molecule.formula} has bonds that {name} was not trained on: {', '.join(missing)}"
            )

    def lengths(self, molecule: Molecule) -> tuple[float, ...]:
        """Å, one for each of the molecule's `site_bonds`."""
        return tuple(self.bond_lengths[kind] for kind in bond_classes(molecule))

    def rigid(self, molecule: Molecule) -> tuple[int, ...]:
        """Which of the molecule's `site_bonds` have a fixed length."""
        return tuple(k for k, kind in enumerate(bond_classes(molecule)) if kind in self.rigid_bonds)

    def strangeness(self, molecule: Molecule, positions: Array) -> Array:
        """(n,) how far the worst pair of atoms is outside of what training saw; 1 is the edge.

        The pairs are those with one to three bonds between them: bonds, angles and dihedral angles.
        """
        pairs, kinds = near_pairs(molecule)
        bands = np.array([self.bands.get(kind, (0.0, np.inf)) for kind in kinds])
        finite = np.isfinite(bands).all(1)
        middle, half = bands[finite].mean(1), (bands[finite, 1] - bands[finite, 0]) / 2
        distance = np.linalg.norm(positions[:, pairs[finite, 0]] - positions[:, pairs[finite, 1]], axis=-1)
        worst: Array = (np.abs(distance - middle) / np.maximum(half, 1e-3)).max(1, initial=0.0)
        return worst / self.edge


def environments(molecule: Molecule) -> list[str]:
    """``C(CHHH)`` for each atom: its element and those of its neighbours, sorted."""
    return [
        f"{element}({''.join(sorted(molecule.elements[j] for j in near))})"
        for element, near in zip(molecule.elements, molecule.neighbors, strict=True)
    ]


def bond_classes(molecule: Molecule) -> list[str]:
    """``C4-H1`` for each of the `site_bonds`."""
    labels = _labels(molecule)
    return ["-".join(sorted((labels[i], labels[j]))) for i, j in molecule.site_bonds]


def near_pairs(molecule: Molecule) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Pairs of sites (n, 2) with one to three bonds between them, and their classes, ``C4-C4-2``."""
    labels, apart = _labels(molecule), molecule.site_separation
    pairs = np.argwhere(np.triu((apart >= 1) & (apart <= _BANDS)))
    kinds = ["-".join([*sorted((labels[i], labels[j])), str(apart[i, j])]) for i, j in pairs]
    return pairs, kinds


def measured_bands(molecules: Iterable[tuple[Molecule, Array]]) -> dict[str, tuple[float, float]]:
    """Lowest and highest distance (Å) of each class of pairs, of molecules with positions (n, n_sites, 3)."""
    found: dict[str, list[float]] = {}
    for molecule, positions in molecules:
        pairs, kinds = near_pairs(molecule)
        for (i, j), kind in zip(pairs, kinds, strict=True):
            distance = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)
            found.setdefault(kind, []).extend((float(distance.min()), float(distance.max())))
    return {kind: (round(min(ends), 4), round(max(ends), 4)) for kind, ends in sorted(found.items())}


def measured_bonds(
    molecules: Sequence[tuple[Molecule, Array]], rigid_below: float
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Mean length (Å) of each class of bonds, and the classes that vary by less than ``rigid_below``.

    Only bonds to an atom without other bonds, such as hydrogen, can be put back at their length.
    """
    found: dict[str, list[Array]] = {}
    for molecule, positions in molecules:
        for (i, j), kind in zip(molecule.site_bonds, bond_classes(molecule), strict=True):
            found.setdefault(kind, []).append(np.linalg.norm(positions[:, i] - positions[:, j], axis=-1))
    lengths = {kind: np.concatenate(each) for kind, each in sorted(found.items())}
    return (
        {kind: round(float(each.mean()), 4) for kind, each in lengths.items()},
        tuple(kind for kind, each in lengths.items() if each.std() < rigid_below and _has_free_end(kind)),
    )


def _has_free_end(kind: str) -> bool:
    return any(re.fullmatch(r"[A-Z][a-z]?1", label) for label in kind.split("-"))


def _labels(molecule: Molecule) -> list[str]:
    return [f"{molecule.elements[i]}{len(molecule.neighbors[i])}" for i in molecule.sites]
