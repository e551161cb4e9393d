"""Store the golden outputs of the bundled propagators; run once per release.

python tests/make_golden_propagators.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parents[1])]
    from tests.released_propagators import NAMES, golden, golden_path
    from zoo.score_dynamics import ScoreDynamics

    for name in NAMES:
        path = golden_path(name)
        path.write_text(json.dumps(golden(ScoreDynamics.from_pretrained(name)), indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
