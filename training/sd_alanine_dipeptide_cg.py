"""Recipe of the checkpoint ``sd-alanine-dipeptide-cg``: from segments of MD to a folder, on CPU cores.

    python -m training.reference_md alanine-dipeptide -o md --segments 40 --length 400
    python -m training.sd_alanine_dipeptide_cg --data md --hold-out segment-000 segment-001

Prints progress and samples per second, saves its state every two minutes and continues from it when
run again; an interrupted run ends with bit for bit the same weights as an uninterrupted one.  Whole
segments are held out, never single frames.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.loop import LOG, LoopConfig, train
from training.metrics import record
from training.reference_md.segments import Segment, read_segments
from training.transitions import (
    Transitions,
    denoising_loss,
    farthest_points,
    local_displacements,
    make_batches,
    rigid_motion,
    transitions,
)
from zoo.backbones.site_mlp import SiteMLPConfig
from zoo.checkpoint import save
from zoo.molecules.molecule import Molecule
from zoo.molecules.rigid import centred
from zoo.score_dynamics import (
    N_REFERENCES,
    ConditionalDenoiser,
    ScoreDynamicsConfig,
    nearest_reference,
)

NAME, VERSION = "sd-alanine-dipeptide-cg", "1.0.0"
FORCEFIELD = "AMBER14SB, TIP3P, 300 K, LangevinMiddle 0.1/ps, 4 fs"


@dataclass(frozen=True)
class DataConfig:
    """Batches and noise of training; lengths in Å, ``sigma_mean`` and ``sigma_std`` of ln(sigma / Å)."""

    lag_time: float = 1.0
    batch_size: int = 512
    condition_noise: float = 0.015
    sigma_mean: float = -1.8
    sigma_std: float = 1.3


def molecule() -> Molecule:
    """Alanine dipeptide, its ten heavy atoms as sites."""
    import mdtraj

    pdb = Path(__file__).parent / "reference_md" / "ace-ala-nme.pdb"
    return Molecule.from_mdtraj(mdtraj.load_pdb(str(pdb)).topology, sites="heavy")


def body_frame(mol: Molecule) -> tuple[int, int, int]:
    """N, CA and C of the alanine."""
    residue = [mol.residue_names[i] for i in mol.sites]

    def find(name: str) -> int:
        return next(
            k for k, (r, n) in enumerate(zip(residue, mol.site_names, strict=True)) if (r, n) == ("ALA", name)
        )

    return find("N"), find("CA"), find("C")


def split(folders: list[Path], hold_out: list[str]) -> tuple[list[Segment], list[Segment]]:
    """Segments for training and those held out, by the names of their files."""
    segments = [s for folder in folders for s in read_segments(folder)]
    names = {s.name for s in segments}
    missing = sorted(set(hold_out) - names)
    if missing:
        raise SystemExit(f"no segment {', '.join(missing)}; there are {', '.join(sorted(names))}")
    return [s for s in segments if s.name not in hold_out], [s for s in segments if s.name in hold_out]


def fitted_config(mol: Molecule, data: DataConfig, architecture: SiteMLPConfig, pairs: Transitions) -> Any:
    """The config, with what is measured on the training pairs: scale of y and bond lengths."""
    ends = np.array(mol.site_bonds)
    lengths = (pairs.before[:, ends[:, 0]] - pairs.before[:, ends[:, 1]]).norm(dim=-1).mean(0)
    common: dict[str, Any] = {
        "name": NAME,
        "version": VERSION,
        "molecule": mol.to_json(),
        "lag_time": data.lag_time,
        "frame": body_frame(mol),
        "bond_lengths": tuple(round(float(b), 4) for b in lengths),
        "architecture": asdict(architecture),
        "forcefield": FORCEFIELD,
    }
    probe = ScoreDynamicsConfig(**common, sigma_data=1.0).build()
    _, y = local_displacements(probe, pairs)
    return ScoreDynamicsConfig(**common, sigma_data=round(float(y.square().mean().sqrt()), 4))


def finish(model: ConditionalDenoiser, pairs: Transitions, held_out: Transitions) -> None:
    """Fit the rigid motion and choose the reference structures."""
    motion = rigid_motion(model, pairs.before.double(), pairs.after.double())
    covariance = motion.T @ motion / len(motion)
    model.rigid_factor.copy_(torch.linalg.cholesky(covariance + 1e-12 * torch.eye(6)))
    x = centred(pairs.before[:: max(1, len(pairs) // 20000)])
    local = x @ model.frames(x)
    model.references.copy_(local[torch.from_numpy(farthest_points(local.flatten(1).numpy(), N_REFERENCES))])
    far = nearest_reference(model, held_out.before)
    model.reference_distance.copy_(torch.quantile(far[:: max(1, len(far) // 100000)], 0.999))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of reference MD")
    parser.add_argument("--hold-out", nargs="+", required=True, help="names of segments not trained on")
    parser.add_argument("--out", type=Path, default=Path("build") / NAME, help="checkpoint folder to write")
    parser.add_argument("--state", type=Path, help="folder of the training state; default: OUT-training")
    parser.add_argument("--steps", type=int, default=40000, help="length of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=SiteMLPConfig.width)
    parser.add_argument("--depth", type=int, default=SiteMLPConfig.depth)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stop-after", type=int, help="save and stop after this step; run again to continue")
    args = parser.parse_args(argv)
    state = args.state or args.out.with_name(args.out.name + "-training")
    torch.set_num_threads(args.threads)
    mol, data = molecule(), DataConfig()
    kept, held_out = split(args.data, args.hold_out)
    pairs = transitions(kept, mol.sites, data.lag_time)
    validation = transitions(held_out, mol.sites, data.lag_time)
    architecture = SiteMLPConfig(n_sites=mol.n_sites, width=args.width, depth=args.depth)
    config = fitted_config(mol, data, architecture, pairs)
    torch.manual_seed(args.seed)
    model = config.build()
    loop = LoopConfig(n_steps=args.steps, learning_rate=1e-3, warmup=500, seed=args.seed, log_every=200)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{NAME}: {n_parameters} parameters, {len(pairs)} pairs of {len(kept)} segments, "
        f"{len(validation)} held out, sigma_data {config.sigma_data} Å, state in {state}",
        flush=True,
    )
    check = make_batches(validation, 8192, 0.0, mol.n_sites)(np.random.default_rng([args.seed, 2**31]))
    started = time.perf_counter()
    first: list[float] = []

    def report(row: dict[str, float]) -> None:
        first.append(row["step"])
        speed = data.batch_size * (row["step"] - first[0] + loop.log_every) / (time.perf_counter() - started)
        line = f"step {row['step']}/{args.steps} loss {row['loss']:.4f} {speed:.0f} samples/s"
        if row["step"] % (5 * loop.log_every) == 0:
            with torch.no_grad():
                value = denoising_loss(model, check, data.sigma_mean, data.sigma_std)
            line += f" held-out {float(value):.4f}"
        print(line, flush=True)

    average = train(
        model, make_batches(pairs, data.batch_size, data.condition_noise, mol.n_sites),
        lambda net, batch, rng, step: [lambda: denoising_loss(net, batch, data.sigma_mean, data.sigma_std)],  # type: ignore[arg-type]
        loop, state, report=report, stop_after=args.stop_after,
    )  # fmt: skip
    model.load_state_dict(average, strict=False)
    finish(model, pairs, validation)
    save(args.out, config.to_dict(), model.state_dict())
    rows = [json.loads(line) for line in (state / LOG).read_text().splitlines()]
    result = {
        "n_parameters": n_parameters,
        "n_steps": rows[-1]["step"],
        "samples_per_step": data.batch_size,
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "samples_per_second": round(rows[-1]["step"] * data.batch_size / rows[-1]["seconds"]),
        "threads": args.threads,
        "n_pairs": len(pairs),
        "final_loss": float(np.mean([r["loss"] for r in rows[-5:]])),
    }
    record(
        args.out,
        "training",
        [result],
        command=f"python -m training.sd_alanine_dipeptide_cg --data md --hold-out {' '.join(args.hold_out)}",
        seed=args.seed,
        extra={"loop": asdict(loop), "data": asdict(data), "segments": [s.name for s in kept]},
    )
    print(f"wrote {args.out} after {rows[-1]['step']} steps, {rows[-1]['seconds'] / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
