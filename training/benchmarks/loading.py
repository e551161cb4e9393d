"""Seconds to open a checkpoint by name, and to fail without a network, beside the Hub's own client.

    python -m training.benchmarks.loading
    python -m training.benchmarks.loading sd-alanine-dipeptide-cg --rounds 9

Each measurement is a process of its own, in which torch has been imported before the clock starts; ways
take turns, and medians are told.  The peer is ``huggingface_hub.snapshot_download`` of the same folder in the
same cache, a temporary one, and ``safetensors.torch.load_file``: no checksum is compared, no model is built.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.command_line import command_line
from zoo import registry
from zoo.checkpoint import WEIGHTS
from zoo.errors import ZooError

COMMIT = "0" * 40
NOWHERE = "http://127.0.0.1:9"  # refuses connections at once
OFFLINE = {"HF_HUB_OFFLINE": "1"}
NO_NETWORK = {"HF_ENDPOINT": NOWHERE}

_TIMED = """import sys, time, torch
t = time.perf_counter()
{code}
print(time.perf_counter() - t)"""
_OURS = "import zoo\nzoo.{cls}.from_pretrained({name!r})"
_PEER = """from huggingface_hub import snapshot_download
from safetensors.torch import load_file
load_file(snapshot_download({repo!r}, revision={revision!r}) + {weights!r})"""
_FAILS = "try:\n{code}\nexcept Exception as error:\n    print(error, file=sys.stderr)\nelse:\n    sys.exit(2)"


def seconds(code: str, cache: Path, variables: dict[str, str]) -> float:
    """What a process says how long this took it.

    Raises
    ------
    ZooError : it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    command = [sys.executable, "-c", _TIMED.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ZooError((done.stderr.strip().splitlines() or ["it did not fail as it should"])[-1])
    return float(done.stdout.splitlines()[-1])


def fill(cache: Path, record: registry.Record) -> None:
    """Lay the checkpoint into a cache as the Hub's client leaves it."""
    repository = cache / "hub" / f"models--{record.repo.replace('/', '--')}"
    shutil.copytree(registry.bundled_folder(record), repository / "snapshots" / COMMIT)
    reference = repository / "refs" / f"v{record.version}"
    reference.parent.mkdir()
    reference.write_text(COMMIT)


def measure(record: registry.Record, rounds: int, cache: Path) -> list[str]:
    """Lines that tell what came out for one checkpoint.

    Raises
    ------
    ZooError : one of the ways does not work.
    """
    fill(cache, record)
    facts = {
        "cls": "Denoiser" if record.kind == "denoiser" else "ScoreDynamics",
        "repo": record.repo,
        "revision": f"v{record.version}",
        "weights": f"/{WEIGHTS}",
    }
    absent = {**facts, "repo": "nobody/none", "name": "nobody/none@v1.0.0", "revision": "v1.0.0"}
    cached = f"{record.repo}@v{record.version}"

    def fails(code: str) -> str:
        return _FAILS.format(code="\n".join(f"    {line}" for line in code.format(**absent).splitlines()))

    ways = [
        (_OURS.format(**facts, name=record.name), OFFLINE),
        (_OURS.format(**facts, name=cached), OFFLINE),
        (_PEER.format(**facts), OFFLINE),
        (fails(_OURS), OFFLINE),
        (fails(_PEER), OFFLINE),
        (fails(_OURS), NO_NETWORK),
    ]
    table = [[seconds(code, cache, variables) for code, variables in ways] for _ in range(rounds)]
    name, hub, peer, ours_off, peer_off, ours_down = map(statistics.median, zip(*table, strict=True))
    peer_down = seconds(fails(_PEER), cache, NO_NETWORK)  # once: it tries for long
    return [
        f"{record.name}, loaded: bundled {name:.3f} s, cached {hub:.3f} s, peer {peer:.3f} s (cached "
        f"{hub / peer:.1f} times the peer)",
        f"{record.name}, not here, HF_HUB_OFFLINE: fails after {ours_off:.3f} s, peer {peer_off:.3f} s "
        f"({ours_off / peer_off:.1f} times)",
        f"{record.name}, not here, no network: fails after {ours_down:.3f} s, peer {peer_down:.3f} s "
        f"({ours_down / peer_down:.2f} times)",
    ]


@command_line()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="of the registry (default: all bundled ones)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    records = [registry.find(name) for name in args.names] or [r for r in registry.records() if r.bundled]
    for record in records:
        with tempfile.TemporaryDirectory() as cache:
            for line in measure(record, args.rounds, Path(cache)):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
