"""Store the golden output of every propagator in this tree; run it whenever weights are replaced.

python tests/make_golden_propagators.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    from test_released_propagators import NAMES, golden, golden_file, loaded, record_of, start

    from zoo.registry import bundled_folder

    for name in NAMES:
        if not (bundled_folder(record_of(name)) / "config.json").is_file():
            print(f"{name} is not in this tree: left out")
            continue
        model = loaded(name)
        path = golden_file(name)
        path.write_text(json.dumps(golden(model, start(model).round(6)), indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
