"""Store the golden outputs of the bundled denoisers; run once per release.

python tests/make_golden.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import test_denoiser
    import test_denoiser_binaries
    import test_denoiser_polymorphs

    from zoo.denoiser import Denoiser

    for module in (test_denoiser, test_denoiser_binaries):
        found = module.golden(Denoiser.from_pretrained(module.NAME))
        module.GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {module.GOLDEN}")
    for name in test_denoiser_polymorphs.NAMES:
        path = test_denoiser_polymorphs.golden_file(name)
        path.write_text(json.dumps(test_denoiser_polymorphs.golden(name), indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
