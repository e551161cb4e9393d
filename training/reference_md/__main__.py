"""Reference MD of a small molecule in water: many independent segments from chosen basins.

Each segment becomes one file, FOLDER/segment-KKK.npz, saved every 20 ps.  After a kill the same
command continues; a longer --length makes existing segments longer.

examples:
  python -m training.reference_md alanine-dipeptide -o build/ala2 --segments 40 --length 400
  python -m training.reference_md alanine-dipeptide -o build/ala2 --segments 20 --length 400 --first 40
      more segments, for example in a second process or on a second machine
  python -m training.reference_md alanine-dipeptide -o build/ala2 --segments 40 --length 2000 \\
      --platform CUDA --save-every 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.command_line import command_line
from training.reference_md.segments import FRAME_INTERVAL
from training.reference_md.systems import SYSTEMS
from zoo.errors import StructureError


@command_line("stopped; the same command continues where it was saved last")
def main(arguments: Sequence[str] | None = None) -> int:
    """Make segments; the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _check(parser, args)
    from training.reference_md.simulation import Generator, Progress, SegmentError

    def report(p: Progress) -> None:
        done, wanted = ((n - 1) * FRAME_INTERVAL for n in (p.n_frames, p.n_wanted))
        print(
            f"segment {p.segment:03d} ({p.basin}): {done:.0f} of {wanted:.0f} ps,"
            f" {p.speed:.2f} ps/s, {p.temperature:.0f} K",
            flush=True,
        )

    generator = Generator(SYSTEMS[args.system], args.output, args.platform, args.threads, args.save_every)
    n_failed = 0
    for number in range(args.first, args.first + args.segments):
        try:
            if not generator.run(number, args.length, report):
                print(f"segment {number:03d}: complete", flush=True)
        except (SegmentError, StructureError) as error:  # the other segments can still be made
            print(f"error: {error}", file=sys.stderr, flush=True)
            n_failed += 1
    return 1 if n_failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.reference_md",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("system", choices=sorted(SYSTEMS), help="the molecule: %(choices)s", metavar="SYSTEM")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument("--segments", type=int, required=True, metavar="N", help="how many segments")
    parser.add_argument("--length", type=float, required=True, metavar="PS", help="of each segment, in ps")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="number of the first one (0)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU platform (%(default)s)")
    parser.add_argument("--platform", choices=("auto", "CPU", "CUDA"), default="auto", help="(%(default)s)")
    parser.add_argument(
        "--save-every", type=float, default=20.0, metavar="PS", help="between two saves (%(default)s)"
    )
    return parser


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with one line and status 2 if a number makes no sense."""
    for name, least in (("segments", 1), ("first", 0), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(args, name)}")
    for name in ("length", "save_every"):
        value, option = getattr(args, name), "--" + name.replace("_", "-")
        if not FRAME_INTERVAL <= value < 1e9:
            parser.error(f"{option} must be at least {FRAME_INTERVAL} ps (one frame), not {value:g}")
        if abs(value / FRAME_INTERVAL - round(value / FRAME_INTERVAL)) > 1e-6:
            parser.error(f"{option} must be a multiple of {FRAME_INTERVAL} ps, not {value:g}")


if __name__ == "__main__":
    sys.exit(main())
