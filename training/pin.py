"""Put the sha256 of a bundled checkpoint's weights, and its commit, into `zoo/registry.json`.

    python -m training.pin denoiser-elements
    python -m training.pin denoiser-elements --commit 0123456789abcdef0123456789abcdef01234567

Run it once, when the folder of a new version is final, and again with the commit that `zoo publish`
printed.  A version that has been released is never pinned to anything else: a fix gets a new version.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from training.command_line import command_line
from zoo import registry
from zoo.checkpoint import load, to_json, write_text
from zoo.errors import CheckpointError


def pin(name: str, registry_file: Path | None = None, *, commit: str | None = None) -> str:
    """Check the bundled folder against its record and write its sha256; returns the sha256.

    Args:
        name: a checkpoint of the registry.
        registry_file: the file to change, by default the package's.
        commit: where it is published, 40 hexadecimal digits; other weights than before are then an
            error, and without it other weights have no commit yet.

    Raises:
        zoo.CheckpointError: the folder cannot be loaded, its name, version or kind is not the
            record's, or this is not the commit of these weights.
    """
    if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
        raise CheckpointError(f"{commit!r} is not a full commit: copy it from `zoo publish`")
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
            changed = row["sha256"] != config["weights_sha256"]
            if changed and commit is not None:
                raise CheckpointError(f"the registry pins other weights of {name}: which were published?")
            row["sha256"] = config["weights_sha256"]
            row["commit"] = commit if commit is not None else None if changed else row.get("commit")
    write_text(path, to_json(data, path))
    return str(config["weights_sha256"])


@command_line()
def main(arguments: Sequence[str] | None = None) -> int:
    """Pin the weights of one checkpoint; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.pin", description=main.__doc__)
    parser.add_argument("name", help="a checkpoint of the registry")
    parser.add_argument("--commit", help="of the Hub, once it is published")
    options = parser.parse_args(arguments)
    print(pin(options.name, commit=options.commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
