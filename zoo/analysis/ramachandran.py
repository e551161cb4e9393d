"""Ramachandran pictures: where a peptide's backbone torsions are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.analysis.kinetics import torsion_histogram
from zoo.errors import StructureError

if TYPE_CHECKING:
    from zoo.molecules.molecule import Molecule


def backbone_torsions(molecule: Molecule) -> list[tuple[int, int, int, int]]:
    """Sites of phi (C-N-CA-C) and psi (N-CA-C-N) of the first residue that has both.

    Raises
    ------
    StructureError : no residue has both, or their atoms are not among the sites.
    """
    labels = {(molecule.residue_ids[i], molecule.names[i]): site for site, i in enumerate(molecule.sites)}
    for r in sorted({r for r, _ in labels}):
        wanted = [(r - 1, "C"), (r, "N"), (r, "CA"), (r, "C"), (r + 1, "N")]
        if all(key in labels for key in wanted):
            a, b, c, d, e = (labels[key] for key in wanted)
            return [(a, b, c, d), (b, c, d, e)]
    raise StructureError("no residue has both phi and psi among the sites of this checkpoint")


def ramachandran(angles: Any, path: Path, title: str = "", start: Any = None) -> Path:
    """A PNG of the free energy -ln p (kT) of (phi, psi) in degrees, angles (n, 2); ``start`` is marked.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    from zoo.analysis.pictures import new_figure, write_atomically

    counts = torsion_histogram(angles, 60)
    energy = np.full(counts.shape, np.nan)
    energy[counts > 0] = -np.log(counts[counts > 0] / counts.max())
    figure = new_figure(7, 6, 110)
    axes = figure.add_subplot()
    shown = axes.imshow(energy.T, origin="lower", extent=(-180, 180, -180, 180), cmap="viridis")
    figure.colorbar(shown, ax=axes, label="free energy (kT)")
    if start is not None:
        phi, psi = np.asarray(start, dtype=np.float64)
        axes.plot(
            phi, psi, "o", markersize=9, markerfacecolor="none", markeredgecolor="crimson", label="start"
        )
        axes.legend(loc="upper right")
    axes.set(xlabel="φ (degrees)", ylabel="ψ (degrees)", title=title)
    axes.set_xticks(range(-180, 181, 60))
    axes.set_yticks(range(-180, 181, 60))
    return write_atomically(figure, Path(path), 110)
