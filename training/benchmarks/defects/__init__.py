"""Benchmark of what denoising must not touch: defects, surfaces and boundaries.

    python -m training.benchmarks.defects --checkpoint denoiser-elements --out build/defects.json

`build` makes the structures, `relax` relaxes them with an embedded-atom potential (cached),
`cases` measures, `__main__` is the command line.
"""
