"""How long opening a checkpoint by name takes, beside reading the same file with safetensors alone.

    python -m training.benchmarks.loading
    python -m training.benchmarks.loading sd-alanine-dipeptide-cg --rounds 9

Each measurement is a process of its own, in which torch has been imported before the clock starts; the two
ways take turns, and medians are told.  ``score-zoo/no-such-model`` with HF_HUB_OFFLINE=1 tells how long it
takes to fail without network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from zoo import registry
from zoo.checkpoint import WEIGHTS
from zoo.errors import ZooError

_CLOCK = "import sys, time, torch\nt = time.perf_counter()\n"
_TOLD = "\nprint(time.perf_counter() - t)"
BY_NAME = f"{_CLOCK}import zoo\nzoo.{{cls}}.from_pretrained({{name!r}}){_TOLD}"
BY_HAND = f"{_CLOCK}from safetensors.torch import load_file\nload_file({{path!r}}){_TOLD}"
OFFLINE = f"""{_CLOCK}import zoo
try:
    zoo.{{cls}}.from_pretrained("score-zoo/no-such-model")
except zoo.ZooError as error:
    print(error, file=sys.stderr){_TOLD}"""


def seconds(code: str) -> float:
    """Of one process, as it tells itself.

    Raises
    ------
    ZooError : it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ZooError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return float(done.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="of the registry (default: all bundled ones)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    try:
        records = [registry.find(name) for name in args.names] or [r for r in registry.records() if r.bundled]
        for record in records:
            cls = "Denoiser" if record.kind == "denoiser" else "ScoreDynamics"
            path = str(registry.bundled_folder(record) / WEIGHTS)
            codes = [
                each.format(cls=cls, name=record.name, path=path) for each in (BY_NAME, BY_HAND, OFFLINE)
            ]
            rounds = [[seconds(code) for code in codes] for _ in range(args.rounds)]
            name, hand, offline = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"{record.name}: {name:.3f} s by name, {hand:.3f} s with safetensors alone "
                f"({name / hand:.1f} times); offline and not here: fails after {offline:.3f} s"
            )
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
