"""Checks of proposed structures: MD passes, damage of each kind is named, and it costs little."""

from __future__ import annotations

import time
from pathlib import Path

import mdtraj
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.molecules.bonds import default_bond_lengths
from zoo.molecules.checks import KINDS, Limits, Validity, kind_of
from zoo.molecules.molecule import Molecule, handedness

Array = npt.NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "molecules"
PDB = mdtraj.load(str(DATA / "alanine-dipeptide.pdb"))
FRAMES = mdtraj.load(str(DATA / "extreme-frames.pdb")).xyz.astype(float) * 10
HEAVY = Molecule.from_mdtraj(PDB.topology, "heavy")
ALL = Molecule.from_mdtraj(PDB.topology, "all")
MAPPINGS = pytest.mark.parametrize("molecule", [HEAVY, ALL], ids=["heavy", "all"])

MEANS = [
    *(1.09, 1.09, 1.09, 1.5104, 1.2291, 1.3331, 1.01, 1.4698, 1.09, 1.5376, 1.5492),
    *(1.09, 1.09, 1.09, 1.2355, 1.3397, 1.01, 1.4631, 1.09, 1.09, 1.09),
]
"""Mean bond lengths of the simulation that the frames are from, Å, in the order of `ALL.site_bonds`."""
LENGTH = dict(zip(ALL.bonds, MEANS, strict=True))


def mean_lengths(molecule: Molecule) -> Array:
    atoms = [tuple(sorted((molecule.sites[i], molecule.sites[j]))) for i, j in molecule.site_bonds]
    return np.array([LENGTH[i, j] for i, j in atoms])


def sites(molecule: Molecule) -> Array:
    return FRAMES[:, list(molecule.sites)].copy()


def validity(molecule: Molecule, limits: Limits | None = None) -> Validity:
    hands = handedness(sites(molecule)[:1], molecule.centres)
    return Validity(molecule, mean_lengths(molecule), hands, limits)


def one(molecule: Molecule, positions: Array) -> str:
    reason = validity(molecule).check(positions[None])[0]
    assert reason is not None
    return reason


def site(molecule: Molecule, label: str) -> int:
    return molecule.site_labels.index(label)


@MAPPINGS
@pytest.mark.parametrize("measured", [True, False])
def test_the_most_extreme_md_frames_pass(molecule: Molecule, measured: bool) -> None:
    lengths = mean_lengths(molecule) if measured else default_bond_lengths(molecule)
    hands = handedness(sites(molecule)[:1], molecule.centres)
    assert Validity(molecule, lengths, hands).check(sites(molecule)) == [None] * len(FRAMES)


@MAPPINGS
@pytest.mark.parametrize(
    "limits",
    [Limits(bond_tolerance=0.145), Limits(clash_fraction=0.80), Limits(hydrogen_clash_fraction=0.61)],
    ids=["bond", "clash", "hydrogen"],
)
def test_the_frames_are_extreme_enough_to_test_the_limits(molecule: Molecule, limits: Limits) -> None:
    only_hydrogens = limits.hydrogen_clash_fraction > 0.6 and molecule is HEAVY
    assert any(validity(molecule, limits).check(sites(molecule))) is not only_hydrogens


@MAPPINGS
def test_a_long_and_a_short_bond(molecule: Molecule) -> None:
    ca, cb = site(molecule, "CA"), site(molecule, "CB")
    for length in (2.1, 1.2):
        x = sites(molecule)[0]
        step = x[cb] - x[ca]
        moved = [k for k in range(molecule.n_sites) if molecule.site_names[k].startswith(("CB", "HB"))]
        x[moved] += step * (length / np.linalg.norm(step) - 1)
        assert one(molecule, x) == f"bond CA-CB {length:.2f} Å"


def test_the_bond_that_is_most_wrong_is_named() -> None:
    x = sites(HEAVY)[0]
    x[site(HEAVY, "CB")] += 0.5
    x[site(HEAVY, "CH3")] += 9.0
    assert one(HEAVY, x).startswith("bond CH3-ACE1:C 1")


@MAPPINGS
def test_an_inverted_centre(molecule: Molecule) -> None:
    # CB and, if there, HA change places about the plane N, CA, C: all bonds and angles stay
    x = sites(molecule)[0]
    n, ca, c = (x[site(molecule, label)] for label in ("ALA2:N", "CA", "ALA2:C"))
    normal = np.cross(n - ca, c - ca)
    normal /= np.linalg.norm(normal)
    moved = [k for k in range(molecule.n_sites) if molecule.site_names[k] in ("CB", "HA")]
    x[moved] -= 2 * ((x[moved] - ca) @ normal)[:, None] * normal
    lengths = mean_lengths(molecule)
    loose = Limits(bond_tolerance=np.inf)
    hands = handedness(sites(molecule)[:1], molecule.centres)
    reason = Validity(molecule, lengths, hands, loose).check(x[None])
    assert reason == ["chirality of CA inverted"]


@MAPPINGS
def test_the_mirror_image_is_wrong_for_l_and_right_for_d(molecule: Molecule) -> None:
    mirrored = sites(molecule) * [1, 1, -1]
    assert one(molecule, mirrored[0]).startswith("chirality of ")
    hands = handedness(sites(molecule)[:1], molecule.centres)
    both = Validity(molecule, mean_lengths(molecule), np.concatenate([hands, -hands]))
    x = np.stack([sites(molecule)[0], mirrored[1], sites(molecule)[2], mirrored[3]])
    assert both.check(x, [0, 1, 0, 1]) == [None] * 4
    assert [reason is None for reason in both.check(x, [0, 0, 1, 1])] == [True, False, False, True]
    assert both.check(x[:2]) == [None, None]
    with pytest.raises(ValueError, match="4 structures of 2 walkers"):
        both.check(x)


def test_every_tetrahedral_centre_is_watched() -> None:
    for label, first, second in (("CB", "HB2", "HB3"), ("CH3", "H1", "H2")):
        x = sites(ALL)[0]
        pair = [ALL.site_names.index(first), ALL.site_names.index(second)]
        x[pair] = x[pair[::-1]]
        assert one(ALL, x) == f"chirality of {label} inverted"


@MAPPINGS
def test_a_clash(molecule: Molecule) -> None:
    x = sites(molecule)[0]
    validator = validity(molecule)
    o, end = site(molecule, "ACE1:O"), site(molecule, "ALA2:O")
    x[o] = x[end] + [1.2, 0.0, 0.0]
    loose = Limits(bond_tolerance=np.inf)
    reason = Validity(molecule, validator.bond_lengths, validator.handedness, loose).check(x[None])[0]
    assert reason is not None
    assert reason.startswith("clash ")
    assert kind_of(reason) == "clash"
    assert float(reason.split()[-2]) <= 1.2


def test_hydrogen_bonds_are_no_clash_where_heavy_atoms_would_be() -> None:
    pair = Molecule(
        ("O", "C1", "C2", "C3", "H"),
        ("O", "C", "C", "C", "H"),
        ("UNK",) * 5,
        (1,) * 5,
        ((0, 1), (1, 2), (2, 3), (3, 4)),
        (0, 1, 2, 3, 4),
    )
    x = np.array([[0, 0, 0], [1.2, 0, 0], [1.2, 1.5, 0], [0, 2.5, 0], [0, 1.6, 0]], dtype=float)
    lengths = np.linalg.norm(x[1:] - x[:-1], axis=1)
    assert Validity(pair, lengths, np.empty((1, 0))).check(x[None]) == [None]
    x[4, 1] = 1.3
    loose = Limits(bond_tolerance=1.0)
    assert Validity(pair, lengths, np.empty((1, 0)), loose).check(x[None]) == ["clash O-H 1.30 Å"]
    x[4, 1], x[3, 1] = 1.6, 1.8
    assert Validity(pair, lengths, np.empty((1, 0)), loose).check(x[None]) == ["clash O-C3 1.80 Å"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_not_finite(value: float) -> None:
    x = sites(ALL)[:3]
    x[1, 5, 2] = value
    with np.errstate(all="raise"):
        assert validity(ALL).check(x) == [None, "positions not finite", None]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("bond CA-CB 2.10 Å", "bond"),
        ("clash O-H 1.30 Å", "clash"),
        ("chirality of CA inverted", "chirality"),
        ("positions not finite", "not finite"),
    ],
)
def test_kinds(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind
    assert kind in KINDS


def test_no_other_reasons() -> None:
    with pytest.raises(ValueError, match="not a reason"):
        kind_of("tired")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_structure_is_judged_alone_and_wherever_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = sites(ALL)[rng.integers(len(FRAMES), size=6)]
    x += rng.normal(size=x.shape) * rng.choice([0.0, 0.05, 0.3], size=(6, 1, 1))
    checker = validity(ALL)
    together = checker.check(x)
    assert together == [checker.check(each[None])[0] for each in x]
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    q *= np.sign(np.linalg.det(q))
    assert [r and kind_of(r) for r in checker.check(x @ q.T + 5)] == [r and kind_of(r) for r in together]


def test_wrong_shapes_are_refused() -> None:
    hands = handedness(sites(HEAVY)[:1], HEAVY.centres)
    with pytest.raises(ValueError, match="bond lengths for 9 bonds"):
        Validity(HEAVY, np.ones(3), hands)
    with pytest.raises(ValueError, match="handedness for 1 centres"):
        Validity(HEAVY, mean_lengths(HEAVY), np.ones((1, 2)))


@MAPPINGS
def test_estimated_bond_lengths_are_near_the_simulated(molecule: Molecule) -> None:
    np.testing.assert_allclose(default_bond_lengths(molecule), mean_lengths(molecule), atol=0.04)


def test_checking_is_cheap() -> None:
    # A network evaluation of 64 walkers takes tens of milliseconds; the best of several, for busy machines.
    x = np.repeat(sites(ALL)[:1], 64, axis=0)
    checker = validity(ALL)
    best = np.inf
    for _ in range(10):
        start = time.perf_counter()
        checker.check(x)
        best = min(best, time.perf_counter() - start)
    assert best < 0.01
