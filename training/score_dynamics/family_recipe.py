"""What the recipes of families have in common: pack, fit, finish, record."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.command_line import command_line
from training.first_card import write_first_card
from training.loop import read_log
from training.metrics import record
from training.reference_md.segments import TOPOLOGY, Segment, read_segments
from training.score_dynamics.families import Member, PackedFamily, fit, read_packed, write_packed
from training.score_dynamics.fit import LEARNING_RATE, add_arguments, loop_config, printed
from training.score_dynamics.packed import NoiseConfig
from training.score_dynamics.recipe import RIGID, earlier, summary
from training.score_dynamics.transitions import local_displacements, rigid_motion, transitions
from zoo.backbones.graph_transformer import GraphTransformer, GraphTransformerConfig
from zoo.checkpoint import save
from zoo.errors import ZooError
from zoo.graph_denoiser import GraphDenoiser, mass, principal
from zoo.molecules.family import Family, environments, measured_bands, measured_bonds
from zoo.molecules.molecule import Molecule
from zoo.score_dynamics import GRAPH_BACKBONE, ScoreDynamicsConfig


@dataclass(frozen=True)
class FamilyRecipe:
    """One checkpoint: what it is of, and how it is trained unless the command line says otherwise.

    ``batch_sizes`` gives each molecule that is trained on, by the name of its folder, its share of a step;
    other molecules are left alone.  Of these, ``segments`` are trained on and ``validation`` (molecule,
    segment) is for the curve; all other segments are held out.
    """

    module: str
    name: str
    version: str
    forcefield: str
    architecture: dict[str, Any]
    batch_sizes: dict[str, int]
    segments: tuple[str, ...]
    validation: tuple[tuple[str, str], ...]
    n_steps: int
    lag_time: float = 1.0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    sampler: dict[str, Any] = field(default_factory=dict)


def read_molecule(folder: Path) -> Molecule:
    """All atoms of the topology that reference MD keeps beside its segments.

    Raises
    ------
    ZooError : there is none.
    """
    import mdtraj

    path = folder / TOPOLOGY
    if not path.is_file():
        raise ZooError(f"{folder} has no {TOPOLOGY}: give folders that training.reference_md wrote")
    return Molecule.from_mdtraj(mdtraj.load_pdb(str(path)).topology, sites="all")


def pack(recipe: FamilyRecipe, folders: Sequence[Path]) -> PackedFamily:
    """Training data and config, with what is measured on the training pairs.

    Raises
    ------
    ZooError : a molecule or a segment of the recipe is missing.
    """
    by_name = {folder.name: folder for folder in folders}
    missing = sorted(set(recipe.batch_sizes) - set(by_name))
    if missing:
        raise ZooError(f"no folder of {', '.join(missing)}: give one for each molecule that is trained on")
    members, names = [], {"training": list[str](), "validation": list[str](), "held_out": list[str]()}
    for name, batch_size in recipe.batch_sizes.items():
        molecule = read_molecule(by_name[name])
        parts: dict[str, list[Segment]] = {"training": [], "validation": [], "held_out": []}
        for segment in read_segments(by_name[name]):
            if (name, segment.name) in recipe.validation:
                part = "validation"
            else:
                part = "training" if segment.name in recipe.segments else "held_out"
            parts[part].append(segment)
            names[part].append(f"{name}/{segment.name}")
        if not parts["training"]:
            raise ZooError(f"{by_name[name]} has none of the segments {', '.join(recipe.segments)}")
        validation = None
        if parts["validation"]:
            validation = transitions(parts["validation"], molecule.sites, recipe.lag_time)
        training = transitions(parts["training"], molecule.sites, recipe.lag_time)
        members.append(Member(name, molecule, training, validation, batch_size))
    config = ScoreDynamicsConfig(
        name=recipe.name,
        version=recipe.version,
        molecule={},
        lag_time=recipe.lag_time,
        frame=(),  # type: ignore[arg-type]
        sigma_data=round(spread(members), 4),
        bond_lengths=(),
        backbone=GRAPH_BACKBONE,
        architecture=recipe.architecture,
        forcefield=recipe.forcefield,
        family=family_of(members).to_json(),
        **recipe.sampler,
    )
    config.check()
    return PackedFamily(config.to_dict(), tuple(members), recipe.noise, names)


def spread(members: Sequence[Member]) -> float:
    """Å, root-mean-square component of the displacements, over the samples of a step."""
    network = GraphTransformer(GraphTransformerConfig(width=8, depth=1, heads=1, vectors=1))
    probe = GraphDenoiser(network, 1.0)
    total, weight = 0.0, 0
    for member in members:
        before, after = member.training.pairs(slice(0, None, max(1, len(member.training) // 20000)))
        one: Any = probe.of(member.molecule)
        _, y = local_displacements(one, before, after)
        total += member.batch_size * float(y.square().mean())
        weight += member.batch_size
    return math.sqrt(total / weight)


def family_of(members: Sequence[Member]) -> Family:
    """Bonds, bands and rigid motion of the training data, and the edge that validation keeps to."""
    seen = [(m.molecule, m.training.frames.double().numpy()) for m in members]
    lengths, rigid = measured_bonds(seen, RIGID)
    family = Family(
        molecules=tuple(f"{m.name} ({m.molecule.formula})" for m in members),
        environments=tuple(sorted({e for m in members for e in environments(m.molecule)})),
        bond_lengths=lengths,
        rigid_bonds=rigid,
        bands=measured_bands(seen),
        example=members[0].molecule.to_json(),
        **rigid_laws(members),
    )
    checks = [m for m in members if m.validation is not None]
    scores = [
        family.strangeness(m.molecule, m.validation.frames.double().numpy())
        for m in checks
        if m.validation is not None
    ]
    edge = max(1.0, float(np.quantile(np.concatenate(scores), 0.999))) if scores else 1.0
    return dataclasses.replace(family, edge=round(edge, 4))


def rigid_laws(members: Sequence[Member]) -> dict[str, Any]:
    """Power laws of the variances of translation with the mass and of rotation with the moment of inertia."""
    network = GraphTransformer(GraphTransformerConfig(width=8, depth=1, heads=1, vectors=1))
    probe = GraphDenoiser(network, 1.0)
    masses, shifts, moments, turns = [], [], [], []
    for member in members:
        before, after = member.training.pairs(slice(0, None, max(1, len(member.training) // 20000)))
        one: Any = probe.of(member.molecule)
        motion = rigid_motion(one, before.double(), after.double())
        of_inertia, axes = principal(before.double())
        omega = (axes.mT @ motion[:, :3, None])[..., 0]
        masses.append(mass(member.molecule))
        shifts.append(float(motion[:, 3:].square().mean()))
        moments += of_inertia.log().mean(0).exp().tolist()
        turns += omega.square().mean(0).tolist()
    return {"translation": power_law(masses, shifts), "rotation": power_law(moments, turns)}


def power_law(sizes: Sequence[float], variances: Sequence[float]) -> tuple[float, float]:
    """(a, b) of ``variance = exp(a) * size**b``; b is 0 where all have the same size."""
    x, y = np.log(sizes), np.log(variances)
    if np.ptp(x) < 1e-6:
        return round(float(y.mean()), 5), 0.0
    b, a = np.polyfit(x, y, 1)
    return round(float(a), 5), round(float(b), 5)


@command_line("stopped; the same command continues from the last save")
def main(recipe: FamilyRecipe, text: str | None, argv: Sequence[str] | None = None) -> int:
    """The command line of a recipe."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {recipe.module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True,
        help="folders of reference MD, one for each molecule and with its name",
    )  # fmt: skip
    out = Path("build") / recipe.name
    parser.add_argument("--out", type=Path, default=out, help="checkpoint folder to write")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument(
        "--pack-only", action="store_true",
        help="write STATE/data.safetensors and stop; train on it elsewhere with "
        "training.score_dynamics.families, bring STATE back, and run this again",
    )  # fmt: skip
    add_arguments(parser, recipe.n_steps)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # parallel over molecules instead, see `families.fit`
    state = args.state or args.out.with_name(args.out.name + "-training")
    return _run(recipe, args, state)


def _run(recipe: FamilyRecipe, args: argparse.Namespace, state: Path) -> int:
    path = state / "data.safetensors"
    write_packed(path, pack(recipe, args.data))
    packed = read_packed(path)
    n_parameters = sum(p.numel() for p in packed.build().parameters())
    print(
        f"{recipe.name}: {n_parameters} parameters, pairs of frames: "
        f"{', '.join(f'{m.name} {len(m.training)}' for m in packed.members)}, "
        f"sigma_data {packed.config['sigma_data']} Å; state and curve.png in {state}",
        flush=True,
    )
    if args.pack_only:
        print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return 0
    loop = loop_config(args)
    model, average = fit(
        packed, state, loop, start_from=args.start_from, workers=args.threads,
        stop_after=args.stop_after, report=printed(state),
    )  # fmt: skip
    rows = read_log(state)
    if rows[-1]["step"] < loop.n_steps:
        print(f"stopped after step {rows[-1]['step']} as asked; run again to continue")
        return 0
    model.cpu().load_state_dict(average, strict=False)
    save(args.out, packed.config, model.state_dict())
    before = earlier(args.start_from)
    result = summary(packed, rows, n_parameters, loop.precision, args.threads)
    result["minutes_in_all"] = round(result["minutes"] + sum(each["minutes"] for each in before), 1)
    result["samples_in_all"] = sum(each["n_steps"] * each["samples_per_step"] for each in [*before, result])
    options = f"--steps {loop.n_steps} --precision {loop.precision} --threads {args.threads}"
    if args.learning_rate != LEARNING_RATE:
        options += f" --learning-rate {args.learning_rate:g}"
    if args.start_from is not None:
        options += f" --start-from {args.start_from.parent.name}/{args.start_from.name}"
    record(
        args.out,
        "training",
        [result],
        command=f"python -m {recipe.module} --data {' '.join(each.name for each in args.data)} {options}",
        seed=args.seed,
        extra={
            "loop": asdict(loop),
            "data": asdict(packed.noise),
            "segments": packed.segments,
            "batch_sizes": {m.name: m.batch_size for m in packed.members},
            "earlier": before,
        },
    )
    write_first_card(args.out)
    print(f"wrote {args.out} after {rows[-1]['step']} steps, {rows[-1]['seconds'] / 60:.1f} minutes")
    return 0
