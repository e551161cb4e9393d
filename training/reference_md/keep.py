"""Compact copies of segments, for keeping: a quarter of the size, and without the state to continue from.

    python -m training.reference_md.keep build/ala2-md -o data/alanine-dipeptide

Positions are rounded to 0.001 Å.  Such files are read like any other segments; they cannot be made longer.
Of the blocks of a walker on a flattened surface the last one keeps its state, so the walker can go on.  A
file that is there already and holds the same frames is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.command_line import command_line
from training.reference_md.segments import BIAS, TOPOLOGY, read_record, write_record
from zoo.analysis.packed_positions import GRAIN
from zoo.errors import StructureError, ZooError


def keep(folder: Path, output: Path) -> int:
    """Copy all segments of a folder; returns how many were written.

    Raises
    ------
    StructureError : no segment, or one that is damaged or differs from the one that was kept under its name;
        walkers on a flattened surface with another bias than those that are there.
    ZooError : the output cannot be written.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise StructureError(f"{folder} has no *.npz in it: give the output folder of training.reference_md")
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (TOPOLOGY, BIAS):
            if (folder / name).exists() and not (output / name).exists():
                shutil.copyfile(folder / name, output / name)
        if (folder / BIAS).exists() and (folder / BIAS).read_bytes() != (output / BIAS).read_bytes():
            raise StructureError(f"{output} is of walkers that felt another bias: choose another folder")
    except OSError as error:
        raise ZooError(f"cannot write to {output}: {error.strerror or error}") from None
    # by walker, a later block in place of the ones before
    ends = {path.name[:7]: path.name for path in paths if path.name.startswith("flat-")}.values()
    written = 0
    for path in paths:
        record, target, last = read_record(path), output / path.name, path.name in ends
        if target.exists():
            there = read_record(target)
            kept = there.pos_nm
            n = min(len(kept), len(record.pos_nm))
            if np.abs(kept[:n] - record.pos_nm[:n]).max() > GRAIN:
                raise StructureError(f"{target} holds other frames than {path}: choose another folder")
            if len(kept) >= len(record.pos_nm) and bool(there.state_xml) == (last and bool(record.state_xml)):
                continue
        try:
            write_record(target, record, compact=True, state=last and bool(record.state_xml))
        except ValueError as error:
            raise StructureError(f"{path}: {error}") from None
        written += 1
    return written


@command_line()
def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the segments of a folder; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reference_md.keep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="with segments")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    args = parser.parse_args(arguments)
    print(f"{keep(args.folder, args.output)} segments written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
