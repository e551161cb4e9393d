"""The curve of a training run: loss, validation loss and speed over steps, from its log.

python -m training.curve build/sd-alanine-dipeptide-cg-training          # writes curve.png there
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from training.command_line import command_line
from training.loop import LOG, read_log

CURVE = "curve.png"


def draw_curve(folder: Path) -> bool:
    """Write ``folder/curve.png`` from ``folder/log.jsonl``; False where Matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no backend is chosen for anybody
    except ImportError:
        return False
    rows = read_log(folder)
    steps = [row["step"] for row in rows]
    figure = Figure(figsize=(7, 5), layout="constrained")
    loss, speed = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for key, label in (("loss", "training"), ("validation", "validation")):
        if all(key in row for row in rows):
            loss.plot(steps, [row[key] for row in rows], label=label)
    loss.set(ylabel="loss", yscale="log")
    loss.legend()
    if all("samples_per_second" in row for row in rows):
        speed.plot(steps, [row["samples_per_second"] for row in rows], color="0.3")
    speed.set(xlabel="step", ylabel="samples/s", ylim=(0, None))
    temporary = folder / (CURVE + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, folder / CURVE)
    return True


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a training state")
    args = parser.parse_args(argv)
    if not (args.folder / LOG).is_file():
        print(f"error: {args.folder} has no {LOG}: give the folder of a training state", file=sys.stderr)
        return 1
    if not draw_curve(args.folder):
        print("error: curves need Matplotlib: pip install 'score-zoo[analysis]'", file=sys.stderr)
        return 1
    print(f"wrote {args.folder / CURVE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
