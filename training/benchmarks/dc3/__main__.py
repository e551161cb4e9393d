"""The DC3 benchmark from nothing to the table: MD, quench of the superheated crystals, evaluation.

    python -m training.benchmarks.dc3 --help
    python -m training.benchmarks.dc3 --material Al Si        # minutes
    python -m training.benchmarks.dc3 --record                # all ten; a day on one core

Each part also runs alone: ``.dc3.md``, ``.dc3.quench`` and ``.dc3.evaluate`` have options of their own.
What is finished is not done again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.benchmarks.dc3 import evaluate, md, quench
from training.benchmarks.dc3.materials import MATERIALS
from training.command_line import command_line


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.dc3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--material", nargs="+", choices=MATERIALS, default=list(MATERIALS))
    parser.add_argument("--data", type=Path, default=Path("build/dc3"))
    parser.add_argument("--potentials", type=Path, help="folder of parameter files that are not in the wheel")
    parser.add_argument("--checkpoint", default="denoiser-elements", help="name or folder")
    parser.add_argument("--record", action="store_true", help="write into the checkpoint's metrics.json")
    args = parser.parse_args(argv)
    common = ["--material", *args.material]
    potentials = ["--potentials", str(args.potentials)] if args.potentials else []
    record = ["--record"] if args.record else []
    return (
        md.main([*common, *potentials, "--out", str(args.data)])
        or quench.main([*common, *potentials, "--data", str(args.data)])
        or evaluate.main([*common, *record, "--data", str(args.data), "--checkpoint", args.checkpoint])
    )


if __name__ == "__main__":
    sys.exit(main())
