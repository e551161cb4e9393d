"""Start structures: matched by topology whatever the order, names, box and file; clear refusals."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
from ase import Atoms
from ase.build import molecule as g2
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import StructureError
from zoo.molecules.bonds import inferred_bonds
from zoo.molecules.molecule import Molecule, handedness
from zoo.molecules.start import load_start

Array = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "molecules"
PATH = DATA / "alanine-dipeptide.pdb"
WATER = DATA / "in-water.gro"
PDB = mdtraj.load(str(PATH))
HEAVY = Molecule.from_mdtraj(PDB.topology, "heavy")
ALL = Molecule.from_mdtraj(PDB.topology, "all")
BEADS = Molecule.from_mdtraj(PDB.topology, ["ALA2-N", "CA", "CB", "ALA2-C"])
POSITIONS = PDB.xyz[0].astype(float) * 10
MAPPINGS = pytest.mark.parametrize("molecule", [HEAVY, ALL, BEADS], ids=["heavy", "all", "beads"])


def sites(molecule: Molecule, positions: Array = POSITIONS) -> Array:
    return positions[list(molecule.sites)]


def subset(keep: Sequence[int], positions: Array = POSITIONS, bonds: bool = True) -> mdtraj.Trajectory:
    """Some atoms of alanine dipeptide in the order given; positions are those of all atoms, in Å."""
    atoms = list(PDB.topology.atoms)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    new = {}
    for i in keep:
        old = atoms[i].residue
        residue = topology.add_residue(old.name, chain, resSeq=old.resSeq)
        new[i] = topology.add_atom(atoms[i].name, atoms[i].element, residue)
    for a, b in PDB.topology.bonds if bonds else ():
        if a.index in new and b.index in new:
            topology.add_bond(new[a.index], new[b.index])
    return mdtraj.Trajectory(positions[list(keep)][None] / 10, topology)


def ase_atoms(order: Sequence[int] | None = None, positions: Array = POSITIONS, **cell: Any) -> Atoms:
    keep = list(range(22) if order is None else order)
    return Atoms([ALL.elements[i] for i in keep], positions[keep], **cell)


def from_ase(atoms: Atoms, heavy: bool = False) -> Molecule:
    elements = atoms.get_chemical_symbols()
    n = len(atoms)
    return Molecule(
        tuple(f"{e}{i}" for i, e in enumerate(elements)),
        tuple(elements),
        ("UNK",) * n,
        (1,) * n,
        tuple(map(tuple, inferred_bonds(elements, atoms.positions, None).tolist())),
        tuple(i for i in range(n) if not heavy or elements[i] != "H"),
    )


def refused(start: Any, molecule: Molecule = ALL, reference: Array | None = None) -> str:
    with pytest.raises(StructureError) as error:
        load_start(start, molecule, reference)
    assert "\n" not in str(error.value)
    return str(error.value)


def rotation(rng: np.random.Generator) -> Array:
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


def bond_lengths(molecule: Molecule, positions: Array) -> Array:
    i, j = np.array(molecule.bonds).T
    lengths: Array = np.linalg.norm(positions[..., i, :] - positions[..., j, :], axis=-1)
    return lengths


# what is accepted


@MAPPINGS
def test_a_pdb_in_its_own_order(molecule: Molecule) -> None:
    for start in (PATH, str(PATH), PDB):
        x = load_start(start, molecule)
        assert x.shape == (1, molecule.n_sites, 3)
        assert x.dtype == np.float64
        np.testing.assert_array_equal(x[0], sites(molecule))
    np.testing.assert_array_equal(load_start(PATH, molecule, sites(molecule))[0], sites(molecule))


def test_a_pdb_is_read_in_angstrom() -> None:
    assert load_start(PATH, ALL)[0, 1] == pytest.approx([1.167, -2.884, -0.381], abs=1e-5)


@MAPPINGS
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(22)), bonds=st.booleans())
def test_order_does_not_matter(molecule: Molecule, order: list[int], bonds: bool) -> None:
    x = load_start(subset(order, bonds=bonds), molecule, sites(molecule))
    np.testing.assert_allclose(x[0], sites(molecule), atol=1e-6)


@MAPPINGS
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(22)), seed=st.integers(0, 2**32 - 1))
def test_ase_atoms_without_bonds_or_names(molecule: Molecule, order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    moved = POSITIONS @ rotation(rng).T + rng.normal(size=3)
    x = load_start(ase_atoms(order, moved), molecule, sites(molecule))[0]
    # without names the hydrogens of a methyl may be permuted, but not to the other hand
    assert (handedness(x, molecule.centres) == handedness(sites(molecule), molecule.centres)).all()
    heavy = [k for k, element in enumerate(molecule.site_elements) if element != "H"]
    np.testing.assert_array_equal(x[heavy], sites(molecule, moved)[heavy])
    assert {tuple(row) for row in x} == {tuple(row) for row in sites(molecule, moved)}
    whole = load_start(ase_atoms(order, moved), ALL, POSITIONS)[0]
    np.testing.assert_allclose(bond_lengths(ALL, whole), bond_lengths(ALL, POSITIONS), atol=0.05)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_moving_the_start_moves_the_result(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn, shift = rotation(rng), 10 * rng.normal(size=3)
    before = load_start(ase_atoms(), ALL, POSITIONS)
    after = load_start(ase_atoms(positions=POSITIONS @ turn.T + shift), ALL, POSITIONS)
    np.testing.assert_allclose(after, before @ turn.T + shift, atol=1e-10)


@MAPPINGS
def test_the_solute_is_found_in_water_and_made_whole(molecule: Molecule) -> None:
    x = load_start(WATER, molecule, sites(molecule))[0]
    # the file rounds to 0.01 Å
    np.testing.assert_allclose(x - x[0], sites(molecule) - sites(molecule)[0], atol=0.011)


def test_what_is_not_broken_is_not_moved() -> None:
    atoms = ase_atoms(cell=[30, 30, 30], pbc=True)
    np.testing.assert_array_equal(load_start(atoms, ALL)[0], POSITIONS)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_broken_across_an_oblique_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag([14.0, 15.0, 16.0]) + np.tril(rng.uniform(-6, 6, (3, 3)), -1)
    images = rng.integers(-1, 2, (22, 3)) @ cell
    atoms = ase_atoms(positions=POSITIONS + images, cell=cell, pbc=True)
    x = load_start(atoms, ALL, POSITIONS)[0]
    np.testing.assert_allclose(bond_lengths(ALL, x), bond_lengths(ALL, POSITIONS), atol=1e-9)
    distances = np.linalg.norm(x[:, None] - x, axis=2)
    expected = np.linalg.norm(POSITIONS[:, None] - POSITIONS, axis=2)
    heavy = list(HEAVY.sites)
    np.testing.assert_allclose(distances[np.ix_(heavy, heavy)], expected[np.ix_(heavy, heavy)], atol=1e-9)


def test_broken_only_along_the_periodic_direction() -> None:
    shifted = POSITIONS.copy()
    shifted[:8, 2] += 20.0
    x = load_start(ase_atoms(positions=shifted, cell=[5, 5, 20], pbc=[False, False, True]), ALL, POSITIONS)
    np.testing.assert_allclose(bond_lengths(ALL, x[0]), bond_lengths(ALL, POSITIONS), atol=1e-9)


def test_each_frame_has_its_own_box() -> None:
    trajectory = mdtraj.join([PDB, PDB])
    trajectory.unitcell_vectors = np.stack([np.eye(3) * 2.0, np.eye(3) * 3.0])
    trajectory.xyz[0, :8, 0] += 2.0
    trajectory.xyz[1, :8, 1] -= 3.0
    x = load_start(trajectory, ALL, POSITIONS)
    np.testing.assert_allclose(bond_lengths(ALL, x), bond_lengths(ALL, np.stack([POSITIONS] * 2)), atol=1e-5)


def test_frames_and_lists_give_one_walker_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trajectory = mdtraj.Trajectory(PDB.xyz + rng.normal(size=(3, 1, 3)), PDB.topology)
    np.testing.assert_allclose(load_start(trajectory, ALL), trajectory.xyz * 10.0, atol=1e-5)
    trajectory.save_pdb(str(tmp_path / "three.pdb"))
    x = load_start([tmp_path / "three.pdb", PDB, ase_atoms()], HEAVY)
    assert x.shape == (5, 10, 3)
    np.testing.assert_allclose(x[:3], trajectory.xyz[:, list(HEAVY.sites)] * 10, atol=2e-3)
    np.testing.assert_array_equal(x[3], x[4])


@pytest.mark.parametrize("name", ["s.gro", "s.h5", "s.pdb.gz", "S.PDB", "s.ent", "s.xyz"])
def test_other_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(PATH.read_bytes()))
    elif name.endswith(".xyz"):
        ase_atoms().write(str(path))
    elif name.endswith((".gro", ".h5")):
        PDB.save(str(path))
    else:
        path.write_bytes(PATH.read_bytes())
    x = load_start(path, HEAVY, sites(HEAVY))
    np.testing.assert_allclose(x[0], sites(HEAVY), atol=6e-3)


@pytest.mark.parametrize("molecule", [HEAVY, BEADS])
def test_hydrogens_may_be_missing_if_the_model_has_none(molecule: Molecule) -> None:
    rng = np.random.default_rng(1)
    for keep in (HEAVY.sites, [i for i in range(22) if ALL.names[i] not in ("HA", "HB1")]):
        order = rng.permutation(keep).tolist()
        for bonds in (True, False):
            x = load_start(subset(order, bonds=bonds), molecule, sites(molecule))
            np.testing.assert_allclose(x[0], sites(molecule), atol=1e-6)


def test_the_beads_alone_are_enough() -> None:
    x = load_start(subset([10, 8, 14, 6]), BEADS, sites(BEADS))
    np.testing.assert_allclose(x[0], sites(BEADS), atol=1e-6)


def test_what_a_model_writes_it_can_start_from(tmp_path: Path) -> None:
    for molecule in (HEAVY, ALL, BEADS):
        path = tmp_path / "end.pdb"
        mdtraj.Trajectory(sites(molecule)[None] / 10, molecule.topology()).save_pdb(str(path))
        np.testing.assert_allclose(load_start(path, molecule, sites(molecule))[0], sites(molecule), atol=2e-3)


def test_nonsense_boxes_are_no_boxes(tmp_path: Path) -> None:
    path = tmp_path / "dummy.pdb"
    path.write_text("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1\n" + PATH.read_text())
    np.testing.assert_allclose(load_start(path, ALL)[0], POSITIONS, atol=1e-5)
    for cell in ([0, 0, 0], [1, 1, 1], [np.nan] * 3):
        atoms = ase_atoms(pbc=True)
        atoms.cell[:] = np.diag(cell)
        np.testing.assert_array_equal(load_start(atoms, ALL)[0], POSITIONS)


def test_reading_leaves_no_warning_and_the_filters_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "dummy.pdb"
    path.write_text("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1\n" + PATH.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        load_start(path, ALL)
        load_start(WATER, ALL)
        assert warnings.filters == before


# labels of symmetric atoms, and mirror images


def test_names_of_symmetric_hydrogens_are_kept() -> None:
    names = list(ALL.names)
    order = list(range(22))
    i, j = names.index("HB2"), names.index("HB3")
    order[i], order[j] = order[j], order[i]
    np.testing.assert_allclose(load_start(subset(order), ALL, POSITIONS)[0], POSITIONS, atol=1e-6)


def test_hydrogens_labelled_with_the_other_hand_are_exchanged() -> None:
    i, j = ALL.names.index("HB2"), ALL.names.index("HB3")
    swapped = POSITIONS.copy()
    swapped[[i, j]] = swapped[[j, i]]
    x = load_start(subset(range(22), swapped), ALL, POSITIONS)[0]
    assert (handedness(x, ALL.centres) == handedness(POSITIONS, ALL.centres)).all()
    assert {tuple(row) for row in x.round(3)} == {tuple(row) for row in swapped.round(3)}
    # without a reference the user's labels stay
    np.testing.assert_allclose(load_start(subset(range(22), swapped), ALL)[0], swapped, atol=1e-6)


@MAPPINGS
def test_the_enantiomer_is_the_mirror_image_down_to_the_hydrogens(molecule: Molecule) -> None:
    mirrored = POSITIONS * [1, 1, -1]
    x = load_start(ase_atoms(positions=mirrored), molecule, sites(molecule))[0]
    assert (handedness(x, molecule.centres) == -handedness(sites(molecule), molecule.centres)).all()
    # named atoms of the mirror image stay where they are
    x = load_start(subset(range(22), mirrored), molecule, sites(molecule))[0]
    np.testing.assert_allclose(x, sites(molecule, mirrored), atol=1e-6)


def test_l_and_d_in_one_trajectory() -> None:
    both = np.stack([POSITIONS, POSITIONS * [-1, 1, 1]])
    i, j = ALL.names.index("HB2"), ALL.names.index("HB3")
    both[1, [i, j]] = both[1, [j, i]]
    trajectory = mdtraj.Trajectory(both / 10, PDB.topology)
    hands = handedness(load_start(trajectory, ALL, POSITIONS), ALL.centres)
    assert (hands == np.array([[1], [-1]]) * handedness(POSITIONS, ALL.centres)).all()


def test_a_diastereomer_is_refused() -> None:
    # 2,3-difluorobutane: the chiral pair (R,R), (S,S) against meso (R,S)
    atoms = g2("trans-butane")
    model = from_ase(atoms)
    carbons = [
        i
        for i, e in enumerate(model.elements)
        if e == "C" and len([j for j in model.neighbors[i] if model.elements[j] == "C"]) == 2
    ]
    hydrogens = [[j for j in model.neighbors[c] if model.elements[j] == "H"] for c in carbons]

    def fluorinated(first: int, second: int) -> Atoms:
        copy = atoms.copy()
        for carbon, h in zip(carbons, (hydrogens[0][first], hydrogens[1][second]), strict=True):
            copy.symbols[h] = "F"
            copy.positions[h] += 0.3 * (copy.positions[h] - copy.positions[carbon])
        return copy

    one = fluorinated(0, 0)
    molecule = from_ase(one)
    assert len(molecule.stereocentres) == 2
    for mirrored in (1, -1):
        copy = one.copy()
        copy.positions[:, 0] *= mirrored
        x = load_start(copy, molecule, one.positions)[0]
        hands = handedness(x, molecule.centres) * handedness(one.positions, molecule.centres)
        assert abs(hands.sum()) == len(hands)
    assert "another stereoisomer" in refused(fluorinated(0, 1), molecule, one.positions)


@pytest.mark.parametrize("name", ["trans-butane", "isobutane", "CH3CH2OH", "C6H6", "CH3COOH", "CH4", "C3H8"])
@pytest.mark.parametrize("heavy", [False, True])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_symmetric_molecules(name: str, heavy: bool, seed: int) -> None:
    atoms = g2(name)
    molecule = from_ase(atoms, heavy)
    reference = atoms.positions[list(molecule.sites)]
    rng = np.random.default_rng(seed)
    shuffled = atoms[rng.permutation(len(atoms))]
    x = load_start(shuffled, molecule, reference)[0]
    lengths = [np.linalg.norm(p[i] - p[j]) for p in (x, reference) for i, j in molecule.site_bonds]
    half = len(molecule.site_bonds)
    np.testing.assert_allclose(lengths[:half], lengths[half:], atol=0.02)
    assert (handedness(x, molecule.centres) == handedness(reference, molecule.centres)).all()
    if heavy:  # and without hydrogens
        keep = [k for k in range(len(shuffled)) if shuffled.symbols[k] != "H"]
        y = load_start(shuffled[keep], molecule, reference)[0]
        lengths = [np.linalg.norm(y[i] - y[j]) for i, j in molecule.site_bonds]
        np.testing.assert_allclose(
            lengths, [np.linalg.norm(reference[i] - reference[j]) for i, j in molecule.site_bonds], atol=0.02
        )


def test_lengths_tell_carbonyl_from_hydroxyl_where_hydrogens_are_missing() -> None:
    atoms = g2("CH3COOH")
    molecule = from_ase(atoms, heavy=True)
    reference = atoms.positions[list(molecule.sites)]
    keep = list(molecule.sites)
    for order in (keep, keep[::-1]):
        np.testing.assert_array_equal(load_start(atoms[order], molecule, reference)[0], reference)


# what is refused


def test_another_molecule() -> None:
    assert "does not hold the model's molecule ACE-ALA-NME: C4H10 found, C6H12N2O2 needed" in refused(
        g2("trans-butane")
    )


def test_solvent_alone() -> None:
    water = mdtraj.load(str(WATER))
    only = water.atom_slice([a.index for a in water.topology.atoms if a.residue.is_water])
    assert "18 H2O found, C6H12N2O2 needed" in refused(only)


@pytest.mark.parametrize("molecule", [HEAVY, ALL])
def test_the_same_formula_bonded_otherwise(molecule: Molecule) -> None:
    ethanol = from_ase(g2("CH3CH2OH"), heavy=molecule is HEAVY)
    message = refused(g2("CH3OCH3"), ethanol)
    assert "C2H6O as needed, but its atoms are bonded otherwise" in message


def test_the_same_heavy_atoms_bonded_otherwise_without_hydrogens() -> None:
    butane = from_ase(g2("trans-butane"), heavy=True)
    isobutane = g2("isobutane")
    assert "bonded otherwise" in refused(isobutane[[s == "C" for s in isobutane.symbols]], butane)


def test_too_many_hydrogens_are_another_molecule() -> None:
    butene = from_ase(g2("isobutene"), heavy=True)
    assert "C4H10 found, C4H8 needed" in refused(g2("isobutane"), butene)


@pytest.mark.parametrize("bonds", [True, False])
def test_missing_hydrogens(bonds: bool) -> None:
    message = refused(subset(HEAVY.sites, bonds=bonds))
    assert "12 of 12 hydrogens are missing and the model moves them" in message
    assert "addHydrogens" in message
    assert "1 of 12 hydrogens" in refused(subset([i for i in range(22) if i != 9], bonds=bonds))


@MAPPINGS
def test_a_missing_heavy_atom(molecule: Molecule) -> None:
    message = refused(subset([i for i in range(22) if ALL.names[i] != "O"]), molecule)
    assert "C6H12N2 found, C6H12N2O2 needed" in message


def test_several_copies() -> None:
    two = PDB.stack(mdtraj.Trajectory(PDB.xyz + 1.5, PDB.topology.copy()))
    message = refused(two)
    assert "2 copies of the molecule (at ACE1, ACE1)" in message
    assert "give each copy as a frame" in message


def test_broken_without_a_box() -> None:
    broken = POSITIONS.copy()
    broken[8:] += [21.0, 0, 0]
    message = refused(subset(range(22), broken))
    assert "bond N-CA is 2" in message
    assert "Å long: the molecule is broken across a periodic box" in message
    # without bonds nothing says where the pieces belong
    assert "in several pieces; it has no box" in refused(ase_atoms(positions=broken))


def test_damaged_with_a_box() -> None:
    damaged = POSITIONS.copy()
    damaged[0] += [3.0, 0, 0]
    trajectory = subset(range(22), damaged)
    trajectory.unitcell_vectors = np.eye(3)[None] * 3
    message = refused(trajectory)
    assert "bond" in message
    assert "H1" in message
    assert "damaged" in message


def test_atoms_on_top_of_each_other() -> None:
    damaged = POSITIONS.copy()
    damaged[0] = damaged[1]
    assert "bond H1-CH3 is 0.00 Å long: the structure is damaged" in refused(subset(range(22), damaged))


def test_nan_says_in_which_frame() -> None:
    trajectory = mdtraj.join([PDB, PDB])
    trajectory.xyz[1, 3] = np.nan
    assert "frame 1: 1 of 22 atoms have NaN" in refused(trajectory)
    assert "frame" not in refused(trajectory[1])


@pytest.mark.parametrize("suffix", ["xtc", "dcd", "trr", "nc", "XTC"])
def test_positions_without_atoms(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.{suffix}"
    path.write_bytes(b"anything")
    message = refused(path)
    assert f"{suffix.upper()} holds positions but not which atoms they are; give a PDB" in message
    assert "top='start.pdb'" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdb", b"", "is empty"),
        ("a.gro", b"", "is empty"),
        ("a.pdb", b"REMARK nothing here\nEND\n", "a.pdb"),
        ("a.gro", b"title\nnot a number\n", "cannot be read as GRO"),
        ("a.gro", b"title\n 22\n    1ACE", "a.gro"),
        ("a.h5", b"not HDF5 at all", "cannot be read as H5"),
        ("a.pdb", b"\x00\xff\xfe" * 100, "a.pdb"),
        ("a.psf", b"PSF\n", "no positions"),
        ("a.docx", b"x", "DOCX files cannot be read; give a PDB"),
        ("noname", b"x", "files without a suffix cannot be read"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_other_unusable_input(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.pdb")
    assert "is a folder" in refused(tmp_path)
    assert "not int" in refused(3)
    assert "not NoneType" in refused(None)
    assert "the list is empty" in refused([])
    assert "has no atoms" in refused(Atoms())
    assert "has no frames" in refused(mdtraj.Trajectory(np.empty((0, 22, 3)), PDB.topology))
    assert "has no topology" in refused(mdtraj.Trajectory(PDB.xyz, None))
