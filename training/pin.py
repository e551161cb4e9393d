"""Put the sha256 of a bundled checkpoint's weights into `zoo/registry.json`.

    python -m training.pin denoiser-elements

Run it once, when the folder of a new version is final.  A version that has been released is never
pinned again: a fix gets a new version.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zoo import registry
from zoo.checkpoint import load, to_json, write_text
from zoo.errors import CheckpointError, ZooError


def pin(name: str, registry_file: Path | None = None) -> str:
    """Check the bundled folder against its record and write its sha256; returns the sha256.

    Raises:
        zoo.CheckpointError: the folder cannot be loaded, or its name, version or kind is not the
            record's.
    """
    record = registry.find(name)
    config = load(registry.bundled_folder(record), kind=record.kind).config
    for key in ("name", "version"):
        if config[key] != getattr(record, key):
            raise CheckpointError(
                f"the folder says {key} {config[key]!r}, the registry {getattr(record, key)!r}"
            )
    path = registry_file or Path(registry.__file__).with_name("registry.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    for row in data["checkpoints"]:
        if row["name"] == record.name:
            row["sha256"] = config["weights_sha256"]
    write_text(path, to_json(data, path))
    return str(config["weights_sha256"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Pin the weights of one checkpoint; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.pin", description=main.__doc__)
    parser.add_argument("name", help="a checkpoint of the registry")
    try:
        print(pin(parser.parse_args(arguments).name))
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
