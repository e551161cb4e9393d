"""Geometric mixing of Lennard-Jones parameters, as OPLS has it, in OpenMM, which mixes sigmas arithmetically.

Exact for one solute in water of which only one kind of atom has a Lennard-Jones term, and as fast as before:
pairs within the solute become exceptions of their own, and a sigma s of the solute is replaced by the
s' with (s' + s_O) / 2 = sqrt(s s_O).
"""

from __future__ import annotations

from itertools import combinations
from math import sqrt
from typing import Any


def mix_geometrically(system: Any, n_solute: int) -> None:
    """Change the ``NonbondedForce`` of an ``openmm.System`` whose first ``n_solute`` atoms are the solute.

    Raises
    ------
    ValueError : the solvent has Lennard-Jones terms of several sizes.
    """
    from openmm import NonbondedForce, unit

    force = next(each for each in system.getForces() if isinstance(each, NonbondedForce))
    units = (unit.elementary_charge, unit.nanometer, unit.kilojoule_per_mole)
    solute = [_values(force.getParticleParameters(i), units) for i in range(n_solute)]
    others = (
        _values(force.getParticleParameters(i), units) for i in range(n_solute, system.getNumParticles())
    )
    sizes = {sigma for _, sigma, epsilon in others if epsilon > 0}
    if len(sizes) > 1:
        raise ValueError(f"the solvent has Lennard-Jones terms of several sizes: {sorted(sizes)} nm")

    known = {}
    for index in range(force.getNumExceptions()):
        i, j, *values = force.getExceptionParameters(index)
        if max(i, j) < n_solute:
            known[min(i, j), max(i, j)] = index, _values(values, (units[0] ** 2, *units[1:]))
    for i, j in combinations(range(n_solute), 2):
        (q_i, sigma_i, epsilon_i), (q_j, sigma_j, epsilon_j) = solute[i], solute[j]
        sigma = sqrt(sigma_i * sigma_j)
        if (i, j) in known:  # excluded, or scaled down because three bonds apart
            index, (charges, _, epsilon) = known[i, j]
            force.setExceptionParameters(index, i, j, charges, sigma, epsilon)
        else:
            force.addException(i, j, q_i * q_j, sigma, sqrt(epsilon_i * epsilon_j))
    for size in sizes:
        for i, (charge, sigma, epsilon) in enumerate(solute):
            force.setParticleParameters(i, charge, 2 * sqrt(sigma * size) - size, epsilon)


def _values(quantities: Any, units: tuple[Any, ...]) -> tuple[float, ...]:
    return tuple(value.value_in_unit(u) for value, u in zip(quantities, units, strict=True))
