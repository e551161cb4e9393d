"""Benchmarks: every figure of a card comes from a script in this folder."""
