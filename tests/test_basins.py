"""Basins: every point in one region, cores inside, wells found where they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.analysis.basins import Basin, Basins, alanine_basins, automatic_basins
from zoo.errors import StructureError

ANGLE = st.floats(-180.0, 180.0, exclude_max=True)


@given(ANGLE, ANGLE)
def test_every_pair_of_angles_is_in_one_region_and_its_core_is_inside(phi: float, psi: float) -> None:
    basins = alanine_basins()
    point = [[phi, psi]]
    region, core = int(basins.regions(point)[0]), int(basins.cores(point)[0])
    assert region >= 0
    assert core in (-1, region)


@pytest.mark.parametrize(
    ("phi", "psi", "name"),
    [
        (-80, 80, "beta"),  # C7eq
        (-155, 160, "beta"),  # C5
        (-70, 145, "beta"),  # PII
        (-75, -20, "alpha-R"),
        (-150, -60, "alpha-R"),  # alpha'
        (55, 45, "alpha-L"),
        (75, -65, "C7ax"),
        (60, -150, "C7ax"),
    ],
)
def test_the_conformers_of_alanine_dipeptide(phi: float, psi: float, name: str) -> None:
    basins = alanine_basins()
    assert basins.names[int(basins.regions([[phi, psi]])[0])] == name
    around = [[phi + 360.0, psi - 360.0]]
    assert basins.names[int(basins.regions(around)[0])] == name


def test_groups_are_the_sides_of_phi() -> None:
    basins = alanine_basins()
    labels = basins.cores([[-70, 145], [-75, -20], [55, 45], [75, -65], [0, 0]])
    assert basins.grouped(labels).tolist() == [0, 0, 1, 1, -1]


@pytest.mark.parametrize(
    ("basins", "message"),
    [
        ([("a", (0, 90), (10, 80)), ("b", (80, 180), (100, 170))], "overlap"),
        ([("a", (0, 90), (10, 100))], "reaches out of its region"),
        ([("a", (0, 90), (10, 80)), ("a", (90, 180), (100, 170))], "each a different one"),
        ([], "need names"),
    ],
)
def test_impossible_basins_are_refused(
    basins: list[tuple[str, tuple[float, float], tuple[float, float]]], message: str
) -> None:
    made = tuple(Basin(name, ((region,),), ((core,),)) for name, region, core in basins)
    with pytest.raises(StructureError, match=message):
        Basins(made)


def wells(centres: list[float], weights: list[float], width: float = 12.0, n: int = 20000) -> np.ndarray:
    rng = np.random.default_rng(0)
    which = rng.choice(len(centres), n, p=weights)
    return (np.array(centres)[which] + width * rng.standard_normal(n) + 180.0) % 360.0 - 180.0


def test_butane_has_trans_and_two_gauche_wells() -> None:
    angle = wells([180.0, 65.0, -65.0], [0.6, 0.2, 0.2])
    found = automatic_basins(angle[:, None], ["C-C-C-C"])
    assert set(found.names) == {"trans", "gauche+", "gauche-"}
    share = np.bincount(found.regions(angle[:, None]), minlength=3) / len(angle)
    by_name = dict(zip(found.names, share, strict=True))
    assert by_name["trans"] == pytest.approx(0.6, abs=0.02)
    assert (found.cores(angle[:, None]) >= 0).mean() > 0.7


def test_a_flat_dihedral_is_one_basin_and_a_ripple_is_no_barrier() -> None:
    flat = np.random.default_rng(0).uniform(-180, 180, (20000, 1))
    assert len(automatic_basins(flat, ["x"]).names) == 1
    ripple = wells([50.0, 75.0], [0.5, 0.5])[:, None]
    assert len(automatic_basins(ripple, ["x"]).names) == 1


def test_two_dihedrals_combine_to_what_was_visited() -> None:
    angles = np.stack([wells([180.0, 65.0], [0.5, 0.5]), wells([180.0], [1.0])], 1)
    found = automatic_basins(angles, ["a", "b"])
    assert found.n_dihedrals == 2
    assert len(found.names) == 2
