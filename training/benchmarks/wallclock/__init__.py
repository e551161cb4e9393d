"""Rollouts against molecular dynamics with a stopwatch."""
