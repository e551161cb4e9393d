"""What the recipes of all propagators have in common: pack, fit, finish, record."""

from __future__ import annotations

import argparse
import fnmatch
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from training.command_line import command_line
from training.first_card import write_first_card
from training.loop import read_log
from training.metrics import record
from training.reference_md.releases import read_flattened, simulated_ps
from training.reference_md.segments import Segment, read_segments
from training.score_dynamics.calibration import LONGEST_LAG, calibrated
from training.score_dynamics.crossings import fitted_shift, md_rates, with_shift
from training.score_dynamics.fit import LEARNING_RATE, add_arguments, fit, loop_config, printed
from training.score_dynamics.packed import NoiseConfig, Packed, read_packed, write_packed
from training.score_dynamics.sides import gathered, learn_sides
from training.score_dynamics.transitions import (
    Transitions,
    farthest_points,
    local_displacements,
    rigid_motion,
    transitions,
)
from zoo.checkpoint import read_metrics, save
from zoo.errors import ZooError
from zoo.molecules.molecule import Molecule
from zoo.molecules.rigid import centred
from zoo.score_dynamics import (
    N_REFERENCES,
    ConditionalDenoiser,
    ScoreDynamicsConfig,
    nearest_reference,
)
from zoo.sides import SidesConfig

if TYPE_CHECKING:
    from training.score_dynamics.families import PackedFamily

#: Series of many: shots (`reference_md.shots`), blocks of a walker (`reference_md.flattened`).
_SERIES = re.compile(r"(?P<shot>shot-\d{3})\d{2}|(?P<block>flat-\d{2})\d{3}")

#: Å; the standard deviation of a bond that vibrates is ten times this, of a constraint in a file a tenth.
RIGID = 2e-3


@dataclass(frozen=True)
class Recipe:
    """One checkpoint: what it is of, and how it is trained unless the command line says otherwise."""

    module: str
    name: str
    version: str
    forcefield: str
    molecule: Callable[[], Molecule]
    frame: Callable[[Molecule], tuple[int, int, int]]
    backbone: str
    architecture: dict[str, Any]
    hold_out: tuple[str, ...]
    validation: tuple[str, ...]
    n_steps: int
    lag_time: float = 1.0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    sampler: dict[str, Any] = field(default_factory=dict)
    """Of `ScoreDynamicsConfig`: sigma_min, sigma_max, n_levels, rho, solver, batch_slots."""
    settled: Callable[[Segment], npt.NDArray[np.bool_]] | None = None
    """(n_frames,) which frames of plain MD are past the way down from where it was started (None: all)."""
    stays: Callable[[Segment], bool] | None = None
    """Whether plain MD never leaves the side of a high barrier that it is on (None: not known of any)."""

    def plain(self, segment: Segment) -> npt.NDArray[np.bool_]:
        """(n_frames,) which frames are of MD in equilibrium on its side of a high barrier.

        None of shots and of walkers' blocks, which begin where few frames are, and follow from there.
        """
        is_plain = not _SERIES.fullmatch(segment.name)
        if is_plain and self.settled is not None:
            return self.settled(segment)
        return np.full(len(segment.positions), is_plain)


def split(
    folders: list[Path], hold_out: list[str], validation: list[str], may_lack: Collection[str] = ()
) -> dict[str, list[Segment]]:
    """Whole segments for training, for validation, and held out, by the names of their files.

    Names are patterns as those of a shell, so ``flat-01*`` is all of walker 1.  Held-out ones that
    ``may_lack`` need not be there: a recipe holds out more segments than one's own MD may have.

    Raises
    ------
    ZooError : a segment is missing or asked for twice, or none is left for training or validation.
    """
    segments = [s for folder in folders for s in read_segments(folder)]
    names = {s.name for s in segments}
    wanted = ({*hold_out} - {*may_lack}) | {*validation}
    missing = sorted(p for p in wanted if not fnmatch.filter(names, p))
    if missing:
        raise ZooError(f"no segment {', '.join(missing)}; there are {', '.join(shortened(sorted(names)))}")
    away, checked = ({n for p in each for n in fnmatch.filter(names, p)} for each in (hold_out, validation))
    twice = sorted(away & checked)
    if twice:
        raise ZooError(f"{', '.join(twice)} is asked for both as held out and for validation")
    if not validation:
        raise ZooError("no segment for validation: --validation NAME...")
    kept = [s for s in segments if s.name not in away | checked]
    if not kept:
        raise ZooError("all segments are held out or for validation, none is left to train on")
    return {
        "training": kept,
        "validation": [s for s in segments if s.name in checked],
        "held_out": [s for s in segments if s.name in away],
    }


def pack(
    recipe: Recipe,
    folders: list[Path],
    hold_out: list[str],
    validation: list[str],
    releases: tuple[Path, Sequence[str]] | None = None,
) -> Packed:
    """Training data and config, with what is measured on the training pairs: scale of y, bond lengths.

    With ``releases``, a folder of flattened MD and patterns of its blocks, the model is told on which side of
    the barrier there a step ends.  Pairs of plain MD, what remains of them on either side, are then trained
    on in both directions of time.  Without, only those of segments that stay on their side are: segments
    start on purpose where few frames are, and one that leaves the rarer side and does not come back would,
    reversed, enter it much too often.
    """
    parts = split(folders, hold_out, validation, recipe.hold_out)
    mol = recipe.molecule()
    training = transitions(parts["training"], mol.sites, recipe.lag_time)
    segments = {part: list(dict.fromkeys(s.name for s in these)) for part, these in parts.items()}
    over = head = None
    told: dict[str, Any] = {}
    if releases is None and recipe.stays is not None:
        ways = [recipe.plain(s) & recipe.stays(s) for s in parts["training"]]
        training = replace(training, both_ways=torch.from_numpy(np.concatenate(ways))[training.origins])
    if releases is not None:
        is_plain = np.concatenate([recipe.plain(s) for s in parts["training"]])
        training, over, head, sides, segments["releases"] = gathered(
            training, is_plain, mol, recipe.frame(mol), *releases
        )
        told = {"sides": sides.to_json(), "architecture": {**recipe.architecture, "n_labels": 2}}
    common: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.version,
        "molecule": mol.to_json(),
        "lag_time": recipe.lag_time,
        "frame": recipe.frame(mol),
        "backbone": recipe.backbone,
        "architecture": recipe.architecture,
        "forcefield": recipe.forcefield,
        **recipe.sampler,
        **told,
    }
    return Packed(
        config=measured(common, mol, training).to_dict(),
        n_sites=mol.n_sites,
        stereocentre=mol.stereocentres[:1],
        training=training,
        validation=transitions(parts["validation"], mol.sites, recipe.lag_time),
        noise=recipe.noise,
        segments=segments,
        over=over,
        head=head,
    )


def measured(
    known: Mapping[str, Any], molecule: Molecule, training: Transitions, sigma_data: float | None = None
) -> ScoreDynamicsConfig:
    """The config with what training pairs tell: lengths of bonds, which are rigid, and the scale of y (Å)."""
    before, after = training.pairs(slice(0, None, max(1, len(training) // 50000)))
    ends = np.array(molecule.site_bonds)
    bonds = (before[:, ends[:, 0]].double() - before[:, ends[:, 1]].double()).norm(dim=-1)
    config = ScoreDynamicsConfig(
        **{
            **known,
            "bond_lengths": tuple(round(float(b), 4) for b in bonds.mean(0)),
            "rigid_bonds": tuple(torch.nonzero(bonds.std(0) < RIGID)[:, 0].tolist()),
            "sigma_data": 1.0 if sigma_data is None else sigma_data,
        }
    )
    if sigma_data is not None:
        return config
    probe = config.build()
    assert isinstance(probe, ConditionalDenoiser)
    _, y = local_displacements(probe, before, after)
    return replace(config, sigma_data=round(float(y.square().mean().sqrt()), 4))


def finish(model: ConditionalDenoiser, training: Transitions, validation: Transitions) -> None:
    """Fit the rigid motion and choose the reference structures."""
    before, after = training.pairs()
    motion = rigid_motion(model, before.double(), after.double())
    covariance = motion.T @ motion / len(motion)
    model.rigid_factor.copy_(torch.linalg.cholesky(covariance + 1e-12 * torch.eye(6)))
    x = centred(before[:: max(1, len(training) // 20000)])
    local = x @ model.frames(x)
    model.references.copy_(local[torch.from_numpy(farthest_points(local.flatten(1).numpy(), N_REFERENCES))])
    far = nearest_reference(model, validation.pairs()[0])
    model.reference_distance.copy_(torch.quantile(far[:: max(1, len(far) // 100000)], 0.999))


def earlier(start_from: Path | None) -> list[dict[str, Any]]:
    """How the checkpoint that training started from was trained, the first training first; none: empty."""
    if start_from is None:
        return []
    section = read_metrics(start_from.parent).get("sections", {}).get("training")
    if section is None:
        raise ZooError(f"{start_from}: no metrics beside it say how it was trained")
    return trainings(section)


def trainings(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that led to a checkpoint, by the section `training` of its metrics; the first one first."""
    told = {"command": section["command"], "segments": section.get("segments", {})}
    return [*section.get("earlier", []), {**section["results"][0], **told}]


def shortened(names: Sequence[str]) -> list[str]:
    """Names of segments; of shots and blocks, which are many, only how many there are in each series."""
    found = [(name, _SERIES.fullmatch(name)) for name in names]
    shots, blocks = (Counter(m[kind] for _, m in found if m and m[kind]) for kind in ("shot", "block"))
    return [
        *(name for name, match in found if not match),
        *(f"{series}??: {n} shots" for series, n in sorted(shots.items())),
        *(f"{walker}???: {n} blocks" for walker, n in sorted(blocks.items())),
    ]


@command_line("stopped; the same command continues from the last save")
def main(recipe: Recipe, text: str | None, argv: list[str] | None = None) -> int:
    """The command line of a recipe."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {recipe.module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of reference MD")
    parser.add_argument(
        "--hold-out", nargs="+", default=list(recipe.hold_out), metavar="NAME",
        help="segments that nothing here looks at (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--validation", nargs="+", default=list(recipe.validation), metavar="NAME",
        help="segments not trained on, for the curve (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--releases", type=Path, metavar="FOLDER",
        help="of flattened MD: the side of its barrier on which a step ends is drawn first, as often as "
        "there (reference_md/README.md, On a flattened surface)",
    )  # fmt: skip
    parser.add_argument(
        "--blocks", nargs="+", metavar="NAME",
        help="which of its blocks, as patterns of a shell, such as 'flat-0[01]*' (default: all)",
    )  # fmt: skip
    out = Path("build") / recipe.name
    parser.add_argument("--out", type=Path, default=out, help="checkpoint folder to write")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument(
        "--pack-only", action="store_true",
        help="write STATE/data.safetensors and stop; train on it elsewhere with training.score_dynamics.fit, "
        "bring STATE back, and run this again",
    )  # fmt: skip
    add_arguments(parser, recipe.n_steps)
    args = parser.parse_args(argv)
    if args.blocks and args.releases is None:
        parser.error("--blocks are those of a folder: add --releases FOLDER")
    args.blocks = args.blocks or ["flat-*"]
    torch.set_num_threads(1)  # parallel over parts of a batch instead, see `fit`
    state = args.state or args.out.with_name(args.out.name + "-training")
    return _run(recipe, args, state)


def _run(recipe: Recipe, args: argparse.Namespace, state: Path) -> int:
    path = state / "data.safetensors"
    releases = None if args.releases is None else (args.releases, args.blocks)
    write_packed(path, pack(recipe, args.data, args.hold_out, args.validation, releases))
    packed = read_packed(path)
    released = None
    if args.releases is not None:  # of those that were used: not all tell of long lags
        released = simulated_ps(*read_flattened(args.releases, packed.segments["releases"]))
    n_parameters = sum(p.numel() for p in packed.build().parameters())
    print(
        f"{recipe.name}: {n_parameters} parameters, {len(packed.training)} pairs of "
        f"{len(packed.segments['training'])} segments, {len(packed.validation)} for validation, "
        f"sigma_data {packed.config['sigma_data']} Å; state and curve.png in {state}",
        flush=True,
    )
    lacking = [p for p in args.hold_out if not fnmatch.filter(packed.segments["held_out"], p)]
    if lacking:
        print(f"held out by the recipe, but not there: {', '.join(lacking)}", flush=True)
    if args.pack_only:
        print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return 0
    loop = loop_config(args)
    model, average = fit(
        packed,
        state,
        loop,
        start_from=args.start_from,
        workers=args.threads,
        stop_after=args.stop_after,
        report=printed(state),
    )
    rows = read_log(state)
    if rows[-1]["step"] < loop.n_steps:
        print(f"stopped after step {rows[-1]['step']} as asked; run again to continue")
        return 0
    model.cpu().load_state_dict(average, strict=False)
    finish(model, packed.training, packed.validation)
    if packed.head is not None:
        sides = SidesConfig.from_json(packed.config["sides"], packed.n_sites)
        print("learning on which side of the barrier steps end: some minutes", flush=True)
        model.sides = learn_sides(sides, packed.head, args.seed)
    config, fits_noise = packed.config, recipe.lag_time <= LONGEST_LAG
    if fits_noise:
        print("fitting noise to the sampler and to validation MD: a minute or two", flush=True)
        config = calibrated(config, model, packed.validation, args.seed)
    if packed.head is not None:
        print("counting how often steps go over the barrier: some minutes", flush=True)
        assert model.sides is not None
        known, rates = ScoreDynamicsConfig.from_dict(config), md_rates(packed.head, model.sides)
        shift = fitted_shift(known, model, packed.training.frames, rates, args.seed)
        config = with_shift(config, shift)
    save(args.out, config, model.state_dict())
    result = summary(packed, rows, n_parameters, loop.precision, args.threads)
    if fits_noise:
        result["noise_scale"] = config["noise_scale"]
    if released is not None:
        result["released_md_ns"] = round(released / 1000, 3)
    before = earlier(args.start_from)
    result["minutes_in_all"] = round(result["minutes"] + sum(each["minutes"] for each in before), 1)
    result["samples_in_all"] = sum(each["n_steps"] * each["samples_per_step"] for each in [*before, result])
    options = f"--steps {loop.n_steps} --precision {loop.precision} --threads {args.threads}"
    if args.learning_rate != LEARNING_RATE:
        options += f" --learning-rate {args.learning_rate:g}"
    if args.start_from is not None:
        options += f" --start-from {args.start_from.parent.name}/{args.start_from.name}"
    if releases is not None:
        options += f" --releases {args.releases.name} --blocks {' '.join(map(shlex.quote, args.blocks))}"
    if tuple(args.hold_out) != recipe.hold_out:
        options += f" --hold-out {' '.join(map(shlex.quote, args.hold_out))}"
    if tuple(args.validation) != recipe.validation:
        options += f" --validation {' '.join(map(shlex.quote, args.validation))}"
    record(
        args.out,
        "training",
        [result],
        command=f"python -m {recipe.module} --data {' '.join(each.name for each in args.data)} {options}",
        seed=args.seed,
        extra={
            "loop": asdict(loop),
            "data": asdict(packed.noise),
            "segments": {part: shortened(names) for part, names in packed.segments.items()},
            "earlier": before,
        },
    )
    write_first_card(args.out)
    print(f"wrote {args.out} after {rows[-1]['step']} steps, {rows[-1]['seconds'] / 60:.1f} minutes")
    return 0


def summary(
    packed: Packed | PackedFamily,
    rows: Sequence[Mapping[str, Any]],
    n_parameters: int,
    precision: str,
    threads: int,
) -> dict[str, Any]:
    """What a recipe records of its training, from the log."""
    last = rows[-1]
    return {
        "n_parameters": n_parameters,
        "n_steps": last["step"],
        "samples_per_step": packed.samples_per_step,
        "minutes": round(last["seconds"] / 60, 1),
        "samples_per_second": round(last["step"] * packed.samples_per_step / max(last["seconds"], 1e-3)),
        "threads": threads,
        "precision": precision,
        "n_pairs": packed.n_pairs,
        "final_loss": float(np.mean([r["loss"] for r in rows[-5:]])),
        "validation_loss": last["validation"],
    }
