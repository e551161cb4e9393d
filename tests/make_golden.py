"""Store the golden output of the bundled checkpoint; run once per release.

python tests/make_golden.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    from test_denoiser import GOLDEN, NAME, golden

    from zoo.denoiser import Denoiser

    GOLDEN.write_text(json.dumps(golden(Denoiser.from_pretrained(NAME)), indent=1) + "\n")
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    main()
