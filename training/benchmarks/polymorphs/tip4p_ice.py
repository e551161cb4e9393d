"""TIP4P/Ice water in OpenMM: rigid molecules whose charge is on a fourth site, at a pressure of each axis.

Abascal, Sanz, Garcia Fernandez & Vega, J. Chem. Phys. 122, 234511 (2005).  Hydrogens weigh 3 amu, taken from
their oxygen, so that a time step may be 4 fs; that changes no mean position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from training.benchmarks.polymorphs.protons import ANGLE, R_OH
from zoo.errors import MissingExtraError

try:
    import openmm  # type: ignore[import-untyped, unused-ignore]
    from openmm import unit
except ImportError as error:
    raise MissingExtraError(f"ices of TIP4P/Ice need OpenMM ({error}): pip install 'openmm>=8.2'") from None

Array = npt.NDArray[np.float64]

SIGMA, EPSILON_K, CHARGE, D_OM = 3.1668, 106.1, 0.5897, 0.1577  # Å, K, e of a hydrogen, Å
BOLTZMANN = 0.00831446262  # kJ/mol/K
CUTOFF = 0.85  # nm; smallest cells are 1.85 nm wide
TIMESTEP = 0.004  # ps
HYDROGEN_MASS = 3.0


def water_system(n: int, lengths: Array) -> Any:
    """An ``openmm.System`` of ``n`` molecules, sites in the order O, H, H, M; cell lengths (3,) in Å."""
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*np.diag(lengths / 10))
    forces = openmm.NonbondedForce()
    forces.setNonbondedMethod(openmm.NonbondedForce.PME)
    forces.setCutoffDistance(CUTOFF)
    forces.setEwaldErrorTolerance(5e-4)
    forces.setUseDispersionCorrection(True)
    r, half = R_OH / 10, np.radians(ANGLE) / 2
    share = D_OM / 10 / (2 * r * np.cos(half))
    for k in range(0, 4 * n, 4):
        for mass in (18.0154 - 2 * HYDROGEN_MASS, HYDROGEN_MASS, HYDROGEN_MASS, 0.0):
            system.addParticle(mass)
        for hydrogen in (k + 1, k + 2):
            system.addConstraint(k, hydrogen, r)
        system.addConstraint(k + 1, k + 2, 2 * r * np.sin(half))
        system.setVirtualSite(
            k + 3, openmm.ThreeParticleAverageSite(k, k + 1, k + 2, 1 - 2 * share, share, share)
        )
        forces.addParticle(0.0, SIGMA / 10, EPSILON_K * BOLTZMANN)
        for charge in (CHARGE, CHARGE, -2 * CHARGE):
            forces.addParticle(charge, 0.1, 0.0)
        for i in range(4):
            for j in range(i):
                forces.addException(k + i, k + j, 0.0, 0.1, 0.0)
    system.addForce(forces)
    system.addForce(openmm.CMMotionRemover(100))
    return system


class Water:
    """Molecules at a temperature (K) and, unless it is None, a pressure (bar).

    ``start`` has whole molecules O H H in turn, in an orthogonal cell.
    """

    def __init__(
        self, start: Atoms, temperature: float, pressure: float | None, seed: int, threads: int = 1
    ) -> None:
        n = len(start) // 3
        system = water_system(n, start.cell.lengths())
        if pressure is not None:
            barostat = openmm.MonteCarloAnisotropicBarostat(
                openmm.Vec3(pressure, pressure, pressure), temperature, True, True, True, 10
            )
            barostat.setRandomNumberSeed(seed)
            system.addForce(barostat)
        self._integrator = openmm.LangevinMiddleIntegrator(temperature, 1.0, TIMESTEP)
        self._integrator.setRandomNumberSeed(seed)
        self._context = openmm.Context(
            system, self._integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": str(threads)}
        )
        positions = np.zeros((n, 4, 3))
        positions[:, :3] = start.positions.reshape(n, 3, 3)
        self._context.setPositions(positions.reshape(-1, 3) / 10)
        self._context.computeVirtualSites()
        self._freedom = 6 * n - 3
        self._temperature, self._seed = temperature, seed

    def energy(self) -> float:
        """Potential energy in kJ/mol of molecules."""
        energy = self._context.getState(getEnergy=True).getPotentialEnergy()
        return float(energy.value_in_unit(unit.kilojoule_per_mole)) * 6 / (self._freedom + 3)

    def minimize(self) -> None:
        openmm.LocalEnergyMinimizer.minimize(self._context, 10.0, 200)

    def heat(self) -> None:
        """Draw velocities."""
        self._context.setVelocitiesToTemperature(self._temperature, self._seed)

    def advance(self, picoseconds: float) -> None:
        self._integrator.step(round(picoseconds / TIMESTEP))

    def temperature(self) -> float:
        """Of this moment, K; a rigid molecule has six degrees of freedom."""
        energy = self._context.getState(getEnergy=True).getKineticEnergy()
        return float(2 * energy.value_in_unit(unit.kilojoule_per_mole) / self._freedom / BOLTZMANN)

    def frame(self) -> Atoms:
        """Whole molecules O H H in turn, the oxygens inside the cell."""
        state = self._context.getState(getPositions=True)
        lengths = 10 * np.diag(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer))
        sites = 10 * state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        sites = sites.reshape(-1, 4, 3)[:, :3]
        sites = sites - np.floor(sites[:, :1] / lengths) * lengths
        return Atoms(["O", "H", "H"] * len(sites), sites.reshape(-1, 3), cell=lengths, pbc=True)
