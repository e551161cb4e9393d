"""Where snapshots of reference MD are, and what is written into each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.io import read

from training.benchmarks.dc3.md import snapshot_files, write_snapshot

#: A crystal with a smaller share of its atoms on their sites is not counted as kept.
KEPT = 0.98
#: What the structure of a melt is called; the name of a phase otherwise.
MELT = "melt"


def run_folder(out: Path, name: str, potential: str, temperature: float, seed: int = 1) -> Path:
    """The folder of one phase (or "silica melt", "water") at one temperature (K) and of one seed."""
    parts = (name, potential, f"{temperature:g}K", *([f"seed{seed}"] if seed != 1 else []))
    return out / "-".join(part.replace(" ", "-").replace("/", "") for part in parts)


def fresh(folder: Path, n: int) -> bool:
    """Make ready for a run of ``n`` snapshots; False if they are all there already.

    Runs are short: one that was interrupted begins anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = snapshot_files(folder)
    if len(done) >= n:
        return False
    for path in done:
        path.unlink()
    return True


def save_snapshot(
    folder: Path, number: int, frame: Atoms, on_site: npt.NDArray[np.bool_], info: Mapping[str, Any]
) -> None:
    """Write one snapshot as a whole, with the truth about each of its atoms in the array ``on_site``."""
    frame.set_array("on_site", on_site)
    frame.info.update(info, made=datetime.now(UTC).date().isoformat())
    write_snapshot(folder / f"{number:03d}.extxyz.gz", frame)
    told = "  ".join(
        f"{key} {info[key]:.4g}" for key in ("share_on_site", "mean_tilt_deg", "tilt_order") if key in info
    )
    print(
        f"{folder.name}  snapshot {number}  {info['measured_temperature_K']:.0f} K  {told}  "
        f"{'kept' if info['kept'] else 'not kept'}",
        flush=True,
    )


def snapshots(out: Path) -> list[Atoms]:
    """All snapshots below a folder, in the order of their names."""
    return [read(path) for folder in sorted(out.iterdir()) for path in snapshot_files(folder)]
