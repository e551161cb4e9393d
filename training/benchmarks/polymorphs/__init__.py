"""Benchmark of denoisers on MD of silica and ice polymorphs: reference MD, and the evaluation on it.

python -m training.benchmarks.polymorphs.silica --out build/polymorphs
python -m training.benchmarks.polymorphs.ice --out build/polymorphs
python -m training.benchmarks.polymorphs --checkpoint denoiser-ice --data build/polymorphs
"""
