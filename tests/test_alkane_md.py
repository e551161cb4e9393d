"""The alkanes' force field: OPLS-AA as published, not as OpenMM would mix it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.reference_md.systems import ALKANES, SYSTEMS

pytest.importorskip("openmm")

import mdtraj
import networkx
import openmm
from openmm import unit

from training.reference_md.simulation import Generator, Protocol

KCAL, E2 = 4.184, 332.0637  # kJ/mol; kcal/mol Å, of two unit charges
# The table of Jorgensen, Maxwell & Tirado-Rives (1996), in its own units: kcal/mol, Å, degrees.
CHARGE = {1: 0.06, 2: -0.12, 3: -0.18}  # hydrogen, CH2, CH3
SIGMA, EPSILON = {"C": 3.5, "H": 2.5}, {"C": 0.066, "H": 0.030}
ANGLES = {"CCC": (58.35, 112.7), "CCH": (37.5, 110.7), "HCH": (33.0, 107.8)}
TORSIONS = {"CCCC": (1.740, -0.157, 0.279), "CCCH": (0, 0, 0.366), "HCCH": (0, 0, 0.318)}


def _vacuum(name: str, folder: Path) -> tuple[Generator, Any, Any]:
    generator = Generator(SYSTEMS[name], folder, platform="Reference", protocol=Protocol(solvated=False))
    topology = mdtraj.load(str(SYSTEMS[name].pdb_path)).topology
    return generator, generator.openmm_system(topology.to_openmm()), topology


def _by_hand(topology: Any, x: np.ndarray) -> float:
    """kcal/mol of the published terms at x (n, 3) Å; C-H bonds are constraints in the MD and left out."""
    graph = topology.to_bondgraph()
    graph = networkx.relabel_nodes(graph, {atom: atom.index for atom in graph})
    symbol = [atom.element.symbol for atom in topology.atoms]
    energy = 0.0
    for a, b in graph.edges:
        if symbol[a] == symbol[b] == "C":
            energy += 268.0 * (np.linalg.norm(x[a] - x[b]) - 1.529) ** 2
    for centre in graph:
        for a, b in combinations(graph[centre], 2):
            kind = symbol[a] + symbol[centre] + symbol[b]
            k, theta0 = ANGLES[kind if kind in ANGLES else kind[::-1]]
            u, v = x[a] - x[centre], x[b] - x[centre]
            theta = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
            energy += k * (theta - np.radians(theta0)) ** 2
    for b, c in graph.edges:
        for a in set(graph[b]) - {c}:
            for d in set(graph[c]) - {b}:
                kind = "".join(symbol[i] for i in (a, b, c, d))
                v1, v2, v3 = TORSIONS[kind if kind in TORSIONS else kind[::-1]]
                n1, n2 = np.cross(x[b] - x[a], x[c] - x[b]), np.cross(x[c] - x[b], x[d] - x[c])
                cosine = n1 @ n2 / np.linalg.norm(n1) / np.linalg.norm(n2)
                phi = np.arccos(np.clip(cosine, -1, 1))
                terms = v1 * (1 + np.cos(phi)), v2 * (1 - np.cos(2 * phi)), v3 * (1 + np.cos(3 * phi))
                energy += sum(terms) / 2
    apart = dict(networkx.all_pairs_shortest_path_length(graph))
    charge = [CHARGE[1 if symbol[i] == "H" else sum(symbol[j] == "H" for j in graph[i])] for i in graph]
    for a, b in combinations(graph, 2):
        if apart[a][b] >= 3:
            scale = 0.5 if apart[a][b] == 3 else 1.0
            r = np.linalg.norm(x[a] - x[b])
            sigma = np.sqrt(SIGMA[symbol[a]] * SIGMA[symbol[b]])
            epsilon = np.sqrt(EPSILON[symbol[a]] * EPSILON[symbol[b]])
            attraction = (sigma / r) ** 6
            energy += scale * (E2 * charge[a] * charge[b] / r + 4 * epsilon * (attraction**2 - attraction))
    return float(energy)


@pytest.mark.parametrize("name", ["ethane", "butane", "octane"])
def test_energy_is_that_of_the_published_table(name: str, tmp_path: Path) -> None:
    _, system, topology = _vacuum(name, tmp_path)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    rng = np.random.default_rng(0)
    x = mdtraj.load(str(SYSTEMS[name].pdb_path)).xyz[0].astype(float)
    for _ in range(3):
        moved = x + rng.normal(scale=0.01, size=x.shape)
        context.setPositions(moved)
        energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        assert energy / KCAL == pytest.approx(_by_hand(topology, 10 * moved), abs=2e-4)


def test_lennard_jones_with_water_is_geometric(tmp_path: Path) -> None:
    """One carbon and one water oxygen, through the parameters that OpenMM will add up."""
    generator = Generator(SYSTEMS["ethane"], tmp_path, platform="Reference")
    topology = generator.solvated_topology(8 + 3 * 200, 2.1)
    system = generator.openmm_system(topology)
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))

    def sigma(i: int) -> float:
        return float(force.getParticleParameters(i)[1].value_in_unit(unit.angstrom))

    oxygen = 3.1507524
    assert sigma(8) == pytest.approx(oxygen)  # of water, as it was
    assert (sigma(0) + sigma(8)) / 2 == pytest.approx(np.sqrt(3.5 * oxygen))
    assert (sigma(1) + sigma(8)) / 2 == pytest.approx(np.sqrt(2.5 * oxygen))
    within = [force.getExceptionParameters(k)[:2] for k in range(force.getNumExceptions())]
    assert {(i, j) for i, j in within if max(i, j) < 8} == set(combinations(range(8), 2))


def test_water_is_that_of_the_usual_file(tmp_path: Path) -> None:
    ours, theirs = (
        openmm.app.ForceField(name)
        for name in (
            str(SYSTEMS["ethane"].pdb_path.with_name("opls-aa.xml")),
            "amber14/tip3p.xml",
        )
    )
    topology = Generator(SYSTEMS["ethane"], tmp_path, platform="Reference").solvated_topology(8 + 3, 2.1)
    modeller = openmm.app.Modeller(topology, np.zeros((11, 3)) * unit.nanometer)
    modeller.delete([next(topology.residues())])
    found = []
    for field in (ours, theirs):
        system = field.createSystem(modeller.topology)
        force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
        found.append(
            [[float(v._value) for v in force.getParticleParameters(i)] for i in range(3)]
            + [[float(system.getParticleMass(i)._value), 0, 0] for i in range(3)]
            + [[float(system.getConstraintParameters(k)[2]._value), 0, 0] for k in range(3)]
        )
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("system", ALKANES, ids=lambda s: s.name)
def test_starts_are_alkanes_with_the_right_torsions(system: Any, tmp_path: Path) -> None:
    topology = mdtraj.load(str(system.pdb_path)).topology
    carbons = [atom for atom in topology.atoms if atom.element.symbol == "C"]
    assert topology.n_atoms == 3 * len(carbons) + 2
    assert topology.n_bonds == topology.n_atoms - 1
    assert len(system.torsions) == max(len(carbons) - 3, 0)
    generator = Generator(system, tmp_path, platform="Reference")
    for segment in range(len(system.basins)):
        start = system.start(segment)
        made = generator.angles(generator.build(start))
        np.testing.assert_allclose((np.array(made) - start.angles + 180) % 360 - 180, 0, atol=0.1)
