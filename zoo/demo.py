"""The demonstration: denoise a real snapshot of molecular dynamics near melting, then roll a molecule out.

The snapshot (aluminium, 2048 atoms, at its melting point) ships with the package; `zoo/data/README.md`
says how it was made.
"""

from __future__ import annotations

import gzip
import io
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.io import read
from rich.markup import escape
from rich.table import Table

from zoo.analysis import crystals
from zoo.errors import ZooError

if TYPE_CHECKING:
    from rich.console import Console

CHECKPOINT = "denoiser-elements"
SNAPSHOT = "al-melting-point.extxyz.gz"
STEPS = 10
PROPAGATOR = "sd-alanine-dipeptide-cg"
DIPEPTIDE = "alanine-dipeptide.pdb"
WALKERS, LAG_STEPS = 32, 300
_PIXELS = 760  # per panel of the picture


def snapshot() -> Atoms:
    """The bundled MD snapshot: 2048 Al atoms at 933 K; its info says how it was made."""
    data = files("zoo.data").joinpath(SNAPSHOT).read_bytes()
    atoms = read(io.StringIO(gzip.decompress(data).decode()), format="extxyz")
    assert isinstance(atoms, Atoms)
    return atoms


def fraction_table(before: dict[str, float], after: dict[str, float], title: str = "") -> Table:
    """A table of the structures that occur, in percent before and after.

    ``before`` and ``after`` come from `zoo.analysis.crystals.structure_fractions`.
    """
    table = Table(title=title or None)
    table.add_column("structure")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    order = (*crystals.STRUCTURES[1:], crystals.STRUCTURES[0])
    for name in order:
        if before[name] or after[name]:
            table.add_row(name, _percent(before[name]), _percent(after[name]))
    return table


def run(folder: Path, *, console: Console) -> int:
    """Denoise the snapshot, roll the dipeptide out; structures and pictures go to ``folder``.

    Writes ``al-before.extxyz`` and ``al-after.extxyz`` (both with a per-atom ``structure_type``) and
    ``al.png``.  Returns the exit status, 0.

    Raises
    ------
    MissingExtraError : OVITO or matplotlib is not installed.
    ZooError : the folder cannot be written.
    """
    # Fail on a missing extra before spending time on the network.
    from zoo.analysis.pictures import before_after

    before = snapshot()
    labels_before = crystals.structure_types(before)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"cannot make the folder {folder}: {error.strerror or error}") from error

    from zoo.denoiser import Denoiser
    from zoo.structures import FrameWriter

    denoiser = Denoiser.from_pretrained(CHECKPOINT)
    kelvin = float(before.info["temperature_K"])
    console.print(
        f"A snapshot of molecular dynamics: {len(before)} Al atoms at the melting point ({kelvin:.0f} K).\n"
        f"Denoising with {CHECKPOINT} ..."
    )
    started = time.perf_counter()
    after = denoiser.denoise(before, steps=STEPS)
    seconds = time.perf_counter() - started
    labels_after = crystals.structure_types(after)

    taken = int(after.info.get("denoise_steps", STEPS))
    moved = float(np.linalg.norm(crystals.displacements(before, after), axis=1).mean())
    rate = taken * len(before) / max(seconds, 1e-9)
    console.print(
        f"{taken} steps in {seconds:.1f} s ({rate:,.0f} atom steps per second); mean shift {moved:.2f} Å\n"
    )
    console.print(
        fraction_table(
            crystals.structure_fractions(labels_before), crystals.structure_fractions(labels_after)
        )
    )

    paths = [folder / "al-before.extxyz", folder / "al-after.extxyz"]
    for path, atoms, labels in zip(paths, (before, after), (labels_before, labels_after), strict=True):
        atoms = atoms.copy()
        atoms.set_array("structure_type", labels.astype(np.int32))
        with FrameWriter(path) as writer:
            writer.write(atoms)
    title = f"Al at its melting point ({kelvin:.0f} K): {taken} steps of {CHECKPOINT}"
    picture = folder / "al.png"
    paths.append(before_after(before, after, labels_before, labels_after, picture, title, pixels=_PIXELS))
    codes = ", ".join(f"{i} {name}" for i, name in enumerate(crystals.STRUCTURES))
    console.print(f"\nstructure_type: {codes}", soft_wrap=True)
    console.print()
    paths += roll_out_dipeptide(folder, console=console)
    for path in paths:
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)
    return 0


def roll_out_dipeptide(folder: Path, *, console: Console) -> list[Path]:
    """Roll the bundled alanine dipeptide out; writes a trajectory, its topology and a Ramachandran picture.

    Raises
    ------
    MissingExtraError : matplotlib is not installed.
    ZooError : the folder cannot be written.
    """
    from zoo.analysis.kinetics import torsions
    from zoo.analysis.ramachandran import backbone_torsions, ramachandran
    from zoo.score_dynamics import ScoreDynamics

    model = ScoreDynamics.from_pretrained(PROPAGATOR)
    console.print(
        f"Alanine dipeptide in water: {WALKERS} walkers x {LAG_STEPS} steps of {model.lag_time:g} ps "
        f"with {PROPAGATOR} ..."
    )
    with as_file(files("zoo.data").joinpath(DIPEPTIDE)) as start:
        run = model.rollout(start, LAG_STEPS, WALKERS, seed=0)
    console.print(run.report.summary())
    quadruples = backbone_torsions(model.molecule)
    angles = np.concatenate([torsions(t.xyz, quadruples) for t in run.trajectories])
    first = run.trajectories[0]
    xtc, pdb = folder / "dipeptide.xtc", folder / "dipeptide.pdb"
    try:
        first.save_xtc(str(xtc))
        first[0].save_pdb(str(pdb))
    except OSError as error:
        raise ZooError(f"cannot write into {folder}: {error.strerror or error}") from error
    title = f"{WALKERS * LAG_STEPS * model.lag_time / 1000:g} ns of {PROPAGATOR}"
    return [xtc, pdb, ramachandran(angles, folder / "dipeptide.png", title, angles[0])]


def _percent(share: float) -> str:
    # Never round up to 100 %: one atom in two thousand matters here.
    return f"{np.floor(1e4 * share + 1e-6) / 100:.2f} %"
