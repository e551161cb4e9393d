"""The simulation cases of the DC3 benchmark, ten of one lattice each and six compounds, as data.

Chung, Freitas, Cheon & Reed, Phys. Rev. Materials 6, 043801 (2022): lattice, potential,
melting temperature and metastability limit of every case.  Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.build import bulk

TEMPERATURE_STEP = 0.04  # DC3 temperatures are multiples of 0.04 Tm
LIQUID = 1.60  # the liquid is simulated at 1.60 Tm


@dataclass(frozen=True)
class Material:
    """One row of the DC3 table.

    Parameters
    ----------
    key : name used on the command line and in file names.
    structure : the label a perfect classifier gives every atom of the crystal.
    unit_cell : builds the orthogonal unit cell (an ``ase.Atoms`` with pbc everywhere).
    cells : how often the unit cell is repeated along each axis.
    pair_style, pair_coeff : LAMMPS commands; ``{name}`` stands for the parameter file of that name.
    kspace_style : long-range solver or ``None``.
    molten_after : ps that the crystal takes to melt at 1.60 Tm; earlier snapshots are not liquid.
    liquid_pressure : bar; zero by the protocol, more where the melt boils at 1.60 Tm.
    melting_point : Tm in K.
    metastability_limit : T_ml / Tm, the highest superheating at which the crystal survives.
    melt_at : T / Tm of the first half of the equilibration of the liquid, where at 1.60 Tm the crystal would
        outlive it; 0 for none.
    melt : pair_style and pair_coeff of the liquid, where those of the crystal have none.
    ordering : how its species share the lattice, a name of `zoo.analysis.orderings`; "" for elements.
    units : of LAMMPS, "metal" or "real"; masses, lengths and the time step of 1 fs are the same in both.
    fixes : further LAMMPS commands of the force field, after ``pair_coeff``.
    """

    key: str
    structure: str
    unit_cell: Callable[[], Atoms]
    cells: tuple[int, int, int]
    pair_style: str
    pair_coeff: tuple[str, ...]
    melting_point: float
    metastability_limit: float
    kspace_style: str | None = None
    atom_style: str = "atomic"
    charges: tuple[tuple[str, float], ...] = ()
    liquid_pressure: float = 0.0
    molten_after: float = 0.0
    melt_at: float = 0.0
    melt: tuple[str, tuple[str, ...]] | None = None
    ordering: str = ""
    units: str = "metal"
    fixes: tuple[str, ...] = ()

    @property
    def elements(self) -> list[str]:
        """Chemical symbols in the order of the LAMMPS atom types."""
        return list(dict.fromkeys(self.unit_cell().get_chemical_symbols()))

    def at(self, ratio: float) -> Material:
        """With the potential that it has at T = ratio * Tm."""
        if ratio != LIQUID or self.melt is None:
            return self
        return replace(self, pair_style=self.melt[0], pair_coeff=self.melt[1])

    def perfect(self, cells: tuple[int, int, int] | None = None) -> Atoms:
        """The starting crystal, of the protocol's size or of ``cells`` unit cells."""
        return self.unit_cell().repeat(cells or self.cells)


def _hcp(symbol: str, a: float) -> Atoms:
    return bulk(symbol, "hcp", a=a, c=a * np.sqrt(8 / 3), orthorhombic=True)


def _hexagonal_diamond(symbol: str, a: float) -> Atoms:
    """Two hcp lattices shifted by 3/8 of c along z (lonsdaleite; oxygens of ice Ih)."""
    one = _hcp(symbol, a)
    two = one.copy()
    two.positions[:, 2] += 3 / 8 * one.cell[2, 2]
    return one + two


def _cubic(symbol: str, lattice: str, a: float) -> Atoms:
    return bulk(symbol, lattice, a=a, cubic=True)


def _l10(a: float, ratio: float) -> Atoms:
    """L1_0: the (001) planes of an fcc lattice, in turn of copper and of nickel."""
    atoms = bulk("Cu", "fcc", a=a, cubic=True)
    atoms.set_cell(atoms.cell[:] * [1, 1, ratio], scale_atoms=True)
    atoms.symbols[atoms.positions[:, 2] > 0.1] = "Ni"
    return atoms


def _l12(a: float) -> Atoms:
    """L1_2: the corners of the fcc cell are copper, the centres of its faces nickel."""
    atoms = bulk("Ni", "fcc", a=a, cubic=True)
    atoms.symbols[0] = "Cu"
    return atoms


def _wurtzite(cation: str, anion: str, a: float, c: float) -> Atoms:
    """The orthogonal cell of eight atoms: two hcp lattices, the anions' above by 3/8 of c."""
    one = bulk(cation, "hcp", a=a, c=c, orthorhombic=True)
    two = bulk(anion, "hcp", a=a, c=c, orthorhombic=True)
    two.positions[:, 2] += 3 / 8 * c
    return one + two


MATERIALS: dict[str, Material] = {
    m.key: m
    for m in (
        Material(
            "Al", "fcc", lambda: _cubic("Al", "fcc", 4.0), (8, 8, 8),
            "eam/fs", ("* * {Al1.eam.fs} Al",), 933.0, 1.16,
        ),
        Material(
            "Fe", "bcc", lambda: _cubic("Fe", "bcc", 2.9), (10, 10, 10),
            "eam/fs", ("* * {Fe_2.eam.fs} Fe",), 1811.0, 1.08,
        ),
        Material(
            "Ti", "hcp", lambda: _hcp("Ti", 3.0), (11, 7, 7),
            "meam/spline", ("* * {Ti.meam.spline} Ti",), 1941.0, 1.16,
        ),
        Material(
            "Si", "cubic diamond", lambda: _cubic("Si", "diamond", 5.5), (6, 6, 6),
            "edip", ("* * {Si.edip} Si",), 1687.0, 1.16,
        ),
        # mW is a one-site water: ASE knows it as oxygen, the mass is that of the molecule.
        Material(
            "mW", "hexagonal diamond", lambda: _hexagonal_diamond("O", 4.4), (9, 5, 6),
            "sw", ("* * {mW.sw} mW",), 273.0, 1.32,
        ),
        # DC3 used Ewald sums; particle mesh at the same accuracy gives the same forces, faster.
        Material(
            "NaCl", "simple cubic", lambda: bulk("NaCl", "rocksalt", a=5.64056, cubic=True), (6, 6, 6),
            "born/coul/long 10.0 8.0",
            (
                "1 1 0.2640625 0.317 2.340 1.05 0.5",
                "1 2 0.21125 0.317 2.755 7.0 8.6875",
                "2 2 0.1584375 0.317 3.170 72.5 145.625",
            ),
            1074.0, 1.16, kspace_style="pppm 1.0e-5", atom_style="charge",
            charges=(("Na", 1.0), ("Cl", -1.0)), ordering="rocksalt",
        ),
        Material(
            "Ar", "fcc", lambda: _cubic("Ar", "fcc", 5.26), (8, 8, 8),
            "lj/cut 10.2", ("* * 0.010341 3.4",), 83.8, 1.12, liquid_pressure=500.0,
        ),
        Material(
            "Li", "bcc", lambda: _cubic("Li", "bcc", 3.51), (10, 10, 10),
            "snap", ("* * {Li_Zuo_JPCA2020.snapcoeff} {Li_Zuo_JPCA2020.snapparam} Li",),
            454.0, 1.20,
        ),
        Material(
            "Mg", "hcp", lambda: _hcp("Mg", 3.21), (11, 7, 7),
            "eam/fs", ("* * {Mg_mm.eam.fs} Mg",), 923.0, 1.16, liquid_pressure=5000.0,
        ),
        Material(
            "Ge", "cubic diamond", lambda: _cubic("Ge", "diamond", 5.66), (6, 6, 6),
            "tersoff", ("* * {Ge.tersoff} Ge",), 1211.0, 1.32, molten_after=25.0,
        ),
    )
}  # fmt: skip


#: The six compounds; NaCl is also the simple cubic one of the ten.
COMPOUNDS: dict[str, Material] = {
    m.key: m
    for m in (
        Material(
            "CuNi-L10", "fcc", lambda: _l10(3.5321, 1.0484), (8, 8, 8),
            "eam/alloy", ("* * {CuNi.eam.alloy} Cu Ni",), 1462.0, 1.24, ordering="L1_0",
        ),
        Material(
            "CuNi-L12", "fcc", lambda: _l12(3.56298), (8, 8, 8),
            "eam/alloy", ("* * {CuNi.eam.alloy} Cu Ni",), 1462.0, 1.24, ordering="L1_2",
        ),
        Material(
            "CoAl", "bcc", lambda: bulk("CoAl", "cesiumchloride", a=2.866), (10, 10, 10),
            "eam/alloy", ("* * {CoAl.eam.alloy} Co Al",), 1913.0, 1.04, ordering="B2",
        ),
        Material(
            "InP", "cubic diamond", lambda: bulk("InP", "zincblende", a=5.83, cubic=True), (6, 6, 6),
            "hybrid/overlay zbl 4.0 4.2 snap",
            (
                "1 1 zbl 49.0 49.0",
                "1 2 zbl 49.0 15.0",
                "2 2 zbl 15.0 15.0",
                "* * snap {InP_JCPA2020.snapcoeff} {InP_JCPA2020.snapparam} In P",
            ),
            1335.0, 1.20, ordering="zincblende",
            # In its melt phosphorus falls into phosphorus (0.8 Å apart, -300 eV per atom, after 3 ps at the
            # crystal's density and half the time step), so the liquid is of Branicio et al., J. Phys.:
            # Condens. Matter 21, 095002 (2009).
            melt=("vashishta", ("* * {InP.vashishta} In P",)),
        ),
        MATERIALS["NaCl"],
        # Charges by the force field's own parameters, not by a file whose order of types must match.
        Material(
            "ZnO", "hexagonal diamond", lambda: _wurtzite("Zn", "O", 3.28, 5.28), (9, 5, 6),
            "reaxff NULL", ("* * {ffield.reax.ZnOH} Zn O",), 850.0, 1.16, atom_style="charge",
            melt_at=4.0, ordering="wurtzite", units="real",
            fixes=("qeq all qeq/reaxff 1 0.0 10.0 1.0e-6 reaxff",),
        ),
    )
}  # fmt: skip
EVERY: dict[str, Material] = MATERIALS | COMPOUNDS
