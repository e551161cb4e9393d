"""Rollouts of alkanes beside MD: torsions and their rates, size, geometry, speed; `chains` measures."""
