"""The command line: `zoo denoise`, `zoo rollout`, `zoo list`, `zoo fetch`, `zoo publish` and others.

Only what `zoo --help` needs is imported at the top; torch, ASE and OVITO are imported by the command
that uses them.  Results go to stdout; progress, notes and errors to stderr.  A user's mistake is
answered with one line and exit status 1, never with a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from zoo import __version__
from zoo.errors import MissingExtraError, ZooError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="zoo",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # plain help: rich would double the time `zoo --help` takes
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zoo {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Pretrained models for atomistic simulation.

    \b
    Examples:
      zoo demo                                  denoise a bundled MD snapshot near melting
      zoo denoise run.dump -o clean.extxyz      denoise your own trajectory
      zoo analyze run.dump -o defects.json      count its defects
      zoo rollout NAME start.pdb -n 1000        let a molecule take picosecond steps
      zoo finetune NAME --structure my.cif -o mine    teach one your own crystal or molecule
      zoo list                                  the released checkpoints
      zoo info denoiser-elements                what one is for, and how well it does
      zoo space                                 all of this in a web page
      zoo fetch NAME                            download one for a machine without network
    """


@app.command()
def denoise(
    input_file: Annotated[
        Path, typer.Argument(metavar="IN", help="Structure or trajectory; any format ASE reads, or its .gz.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Output file.  [default: <IN>-denoised.extxyz]"),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--checkpoint",
            metavar="NAME",
            help="Name from 'zoo list', or a folder.  [default: the one that suits the first frame]",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("-n", "--steps", min=1, help="Largest number of steps; fewer where it converges.")
    ] = 10,
    analyze: Annotated[
        bool,
        typer.Option(
            "--analyze", help="Table of structures before and after; structure_type per atom in OUT."
        ),
    ] = False,
    colors: Annotated[
        bool | None,
        typer.Option(
            "--colors/--no-colors",
            help="Colours of the labels in OUT, as OVITO reads them.  [default: with --analyze]",
        ),
    ] = None,
    species: Annotated[
        str | None,
        typer.Option("--species", metavar="Al,Cu", help="Element of each LAMMPS type, in order."),
    ] = None,
    format_in: Annotated[
        str | None,
        typer.Option("--format-in", metavar="FORMAT", help="Format of IN if it is not recognised."),
    ] = None,
    format_out: Annotated[
        str | None, typer.Option("--format-out", metavar="FORMAT", help="Format of OUT.  [default: by name]")
    ] = None,
    start: Annotated[int, typer.Option("--start", min=0, help="First frame, counted from 0.")] = 0,
    stop: Annotated[int | None, typer.Option("--stop", min=1, help="Frame to stop before.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Take every n-th frame.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads for the network.  [default: torch's]")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no summary.")] = False,
) -> None:
    """Take the thermal noise out of a structure or trajectory.

    Frames are read, denoised and written one at a time.  Cell, species, arrays and constraints are
    kept.  After Ctrl-C the finished frames are kept in OUT.

    Without -c the checkpoint is chosen among those on this machine, by the composition of the first
    frame and by what they make of it; one line says which and why.  Those that give a verdict put
    structure_type and confidence of each atom into OUT, if that is extxyz or a dump.

    \b
    Examples:
      zoo denoise snapshot.extxyz
      zoo denoise run.dump.gz --species Al,Cu -o clean.dump.gz
      zoo denoise NaCl.dump -c denoiser-binaries --colors -o clean.extxyz
      zoo denoise XDATCAR --start 100 --every 10 --analyze -o clean.extxyz
    """
    from zoo.denoise_command import Job, run

    target = output if output is not None else default_output(input_file)
    job = Job(
        source=input_file,
        target=target,
        checkpoint=checkpoint,
        steps=steps,
        analyze=analyze,
        colors=colors,
        species=None if species is None else species.split(","),
        format_in=format_in,
        format_out=format_out,
        start=start,
        stop=stop,
        every=every,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    raise typer.Exit(run(job))


def default_output(source: Path) -> Path:
    """Where the denoised frames go when the user does not say: beside the current folder's files."""
    name = source.name
    for suffix in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(suffix)
    # dump.melt.1000 and POSCAR keep their whole name, run.dump loses its suffix
    stem = Path(name).stem if Path(name).suffix[1:].isalpha() else name
    return Path(f"{stem}-denoised.extxyz")


@app.command()
def rollout(
    checkpoint: Annotated[
        str, typer.Argument(metavar="NAME", help="Name from 'zoo list', or a checkpoint folder.")
    ],
    start: Annotated[
        Path,
        typer.Argument(metavar="START", help="PDB, GRO, ... of the molecule; several frames: a walker each."),
    ],
    steps: Annotated[
        int, typer.Option("-n", "--steps", min=1, help="Lag steps of each walker, counted from START.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="OUT.xtc, .dcd or .h5.  [default: <START>-rollout.xtc]"
        ),
    ] = None,
    walkers: Annotated[
        int, typer.Option("-w", "--walkers", min=1, help="Independent walkers; a multiple of START's frames.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same trajectories.")] = 0,
    lag_time: Annotated[
        float | None,
        typer.Option("--lag-time", metavar="PS", help="Refuse a checkpoint with another lag time."),
    ] = None,
    max_redraws: Annotated[
        int, typer.Option("--max-redraws", min=0, help="Redraws in one step before a walker stops.")
    ] = 100,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over instead of continuing OUT.")
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="CPU threads; more than one only pays for large networks.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no summary.")] = False,
) -> None:
    """Let a molecule take picosecond steps with a score-dynamics model.

    Trajectories are written as they grow: OUT, or with several walkers OUT-00, OUT-01, ...; OUT.pdb,
    to open together with them; OUT.json, the report; OUT.state.npz, to continue from.  After Ctrl-C
    or a kill the same command continues, and with a larger -n it extends a finished run.

    \b
    Examples:
      zoo rollout sd-alanine-dipeptide-cg start.pdb -n 1000
      zoo rollout sd-alanine-dipeptide-cg start.pdb -n 100000 --walkers 64 -o run.xtc
    """
    from zoo.rollout_command import Job, run

    job = Job(
        checkpoint=checkpoint,
        start=start,
        target=output if output is not None else Path(f"{start.stem}-rollout.xtc"),
        steps=steps,
        walkers=walkers,
        seed=seed,
        lag_time=lag_time,
        max_redraws=max_redraws,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    raise typer.Exit(run(job))


@app.command()
def analyze(
    input_file: Annotated[
        Path, typer.Argument(metavar="IN", help="Structure or trajectory file, anything ASE reads.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.json", help="The report; OUT.png is its picture."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--checkpoint",
            metavar="NAME",
            help="Name from 'zoo list', or a folder.  [default: the one that suits the first frame]",
        ),
    ] = None,
    no_denoise: Annotated[
        bool, typer.Option("--no-denoise", help="IN is without noise: denoised, quenched, built.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps per frame, at most.")] = 10,
    species: Annotated[
        str | None,
        typer.Option("--species", metavar="A,B", help="Elements of LAMMPS types 1, 2, ..."),
    ] = None,
    format_in: Annotated[
        str | None, typer.Option("--format-in", metavar="FORMAT", help="Format of IN.  [default: guessed]")
    ] = None,
    start: Annotated[int, typer.Option("--start", min=0, help="First frame, counted from 0.")] = 0,
    stop: Annotated[int | None, typer.Option("--stop", min=1, help="Frame to stop before.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Take every n-th frame.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads for the network.  [default: torch's]")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Count the defects of a hot crystal: denoise each frame, then look.

    Structures, vacancies and interstitials (no reference lattice needed), stacking faults and twins, grains,
    dislocation lines with their Burgers vectors, and what is disordered: one table; with -o also JSON and
    a picture, along time if there are several frames.  Without -c the checkpoint is chosen as 'zoo denoise'
    does.

    \b
    Examples:
      zoo analyze snapshot.extxyz
      zoo analyze CuNi.dump -c denoiser-binaries
      zoo analyze run.dump.gz --every 10 -o defects.json
      zoo analyze quenched.cif --no-denoise
    """
    from zoo.analyze_command import Job, run

    job = Job(
        source=input_file,
        output=output,
        checkpoint=checkpoint,
        denoise=not no_denoise,
        steps=steps,
        species=None if species is None else species.split(","),
        format_in=format_in,
        start=start,
        stop=stop,
        every=every,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    raise typer.Exit(run(job, _console()))


class _WithLists(TyperCommand):
    """A command whose list options take several values at once, as the shell's ``md/*.xtc`` gives them."""

    lists = ("--reference", "--rollout", "--structure", "--trajectory", "--force-field")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        option = ""  # of which another value may follow
        for k, word in enumerate(args):
            if word.startswith("-") and len(word) > 1:
                option = ""
            elif option:
                given.append(option)
            if k and args[k - 1] in self.lists:
                option = args[k - 1]
            given.append(word)
        return super().parse_args(ctx, given)


@app.command(cls=_WithLists)
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Name from 'zoo list', or a checkpoint folder.")
    ],
    reference: Annotated[
        list[Path],
        typer.Option("--reference", metavar="MD...", help="Trajectories of MD: any files MDTraj reads."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.json", help="The report; OUT.png is its picture.")
    ] = Path("evaluation.json"),
    topology: Annotated[
        Path | None, typer.Option("--topology", metavar="PDB", help="The atoms of MD, for XTC, DCD, ...")
    ] = None,
    reference_interval: Annotated[
        float | None,
        typer.Option(
            "--reference-interval", metavar="PS", help="Between frames of MD.  [default: the file's]"
        ),
    ] = None,
    rollout: Annotated[
        list[Path] | None,
        typer.Option("--rollout", metavar="RUN...", help="Output of 'zoo rollout'.  [default: roll out now]"),
    ] = None,
    walkers: Annotated[
        int, typer.Option("-w", "--walkers", min=1, help="Of the rollout, from frames spread over MD.")
    ] = 64,
    steps: Annotated[int, typer.Option("-n", "--steps", min=1, help="Lag steps of each walker.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the rollout and the bootstrap.")] = 0,
    save_rollout: Annotated[
        Path | None,
        typer.Option(
            "--save-rollout", metavar="RUN.xtc", help="Keep the rollout; one that is there is continued."
        ),
    ] = None,
    dihedrals: Annotated[
        list[str] | None,
        typer.Option("--dihedrals", metavar='"A B C D"', help="Four atoms, names or indices; repeatable."),
    ] = None,
    markov_lag: Annotated[
        float | None, typer.Option("--markov-lag", metavar="PS", help="Of the Markov model.  [default: 5]")
    ] = None,
    block: Annotated[
        float | None,
        typer.Option("--block", metavar="PS", help="Resample blocks; 0: only whole trajectories."),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Of the bootstrap.")] = 1000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT.json and OUT.png, never a rollout.")
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="CPU threads; more than one only pays for large networks.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no table.")] = False,
) -> None:
    """Compare a rollout with MD: free energies, populations, rates, paths, geometry, with 95 % intervals.

    Intervals come from resampling whole trajectories, or blocks where there are fewer than ten.  MD is
    thinned to the checkpoint's lag time.

    \b
    Examples:
      zoo evaluate sd-alanine-dipeptide-cg --reference md/*.xtc --topology md.pdb
      zoo evaluate NAME --reference md.h5 --rollout run-*.xtc -o report.json
      zoo evaluate NAME --reference md.h5 --dihedrals "ACE:C ALA:N ALA:CA ALA:C"
    """
    from zoo.evaluate_command import Job, run

    job = Job(
        checkpoint=checkpoint,
        reference=tuple(reference),
        output=output,
        topology=topology,
        reference_interval=reference_interval,
        rollout=tuple(rollout or ()),
        save_rollout=save_rollout,
        walkers=walkers,
        steps=steps,
        seed=seed,
        dihedrals=tuple(dihedrals or ()),
        markov_lag=markov_lag,
        block=block,
        resamples=resamples,
        overwrite=overwrite,
        threads=threads,
        quiet=quiet,
    )
    raise typer.Exit(run(job, _console()))


@app.command("list")
def list_checkpoints(
    on_hub: Annotated[
        bool, typer.Option("--hub", help="Ask the Hub: versions, sizes and headline metrics.")
    ] = False,
) -> None:
    """List the released checkpoints.

    \b
    Examples:
      zoo list
      zoo list --hub
    """
    if on_hub:
        from zoo.fetch_command import list_hub

        list_hub(_console())
        return
    from rich.table import Table

    from zoo.registry import records

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("version", "kind", "licence", "for"):
        table.add_column(column)
    for record in records():
        table.add_row(record.name, record.version, record.kind, record.license, record.summary)
    _console().print(table)


@app.command()
def info(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name from 'zoo list', or a checkpoint folder.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what a checkpoint is for and what was measured on it.

    \b
    Examples:
      zoo info denoiser-elements
      zoo info ./my-denoiser --json
    """
    from zoo.info_command import show

    show(name, as_json=as_json, console=_console())


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name from 'zoo list' or OWNER/NAME; may end in @v1.2.0.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the cache.")] = False,
) -> None:
    """Download a checkpoint, for a machine that has no network when it runs.

    It goes to the cache of the Hub's client: HF_HUB_CACHE, or HF_HOME/hub.  Copy that folder to a
    compute node, or share it, and set HF_HUB_OFFLINE=1 there.

    \b
    Examples:
      zoo fetch denoiser-elements
      zoo fetch someone/my-denoiser@v1.0.0
      HF_HOME=/shared/huggingface zoo fetch sd-alanine-dipeptide-cg
    """
    from zoo.fetch_command import fetch as run

    run(name, force=force, console=_console())


@app.command("path")
def print_path(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name from 'zoo list' or OWNER/NAME; may end in @v1.2.0.")
    ],
) -> None:
    """Print the folder of a checkpoint that is on this machine, without any network.

    \b
    Example:
      cp -rL "$(zoo path denoiser-elements)" my-denoiser
    """
    from zoo.fetch_command import path

    path(name)


@app.command()
def publish(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Checkpoint folder with card and metrics.")
    ] = None,
    repo: Annotated[str | None, typer.Option("--repo", metavar="OWNER/NAME", help="Where to.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="X.Y.Z", help="The version in the folder's config.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything in the registry that is not published yet.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="A new repository is a private one.")] = False,
) -> None:
    """Check a checkpoint and publish it on the Hub: one commit, then the tag vX.Y.Z.

    It needs a token that may write: 'hf auth login', or HF_TOKEN.  A version that exists is never
    changed.  If something fails there is no tag, and the same command can be given again.

    \b
    Examples:
      zoo publish my-denoiser --repo me/my-denoiser --version 1.0.0 --dry-run
      zoo publish my-denoiser --repo me/my-denoiser --version 1.0.0
    """
    from zoo.publish_command import publish as run

    status = run(
        folder,
        repo,
        version,
        everything=everything,
        dry_run=dry_run,
        private=private,
        console=_console(),
    )
    raise typer.Exit(status)


@app.command(context_settings={"ignore_unknown_options": True})
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a checkpoint, see 'zoo list'.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="...", help="Passed on to the recipe.")
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--publish", metavar="OWNER/NAME", help="Publish what comes out.")
    ] = None,
) -> None:
    """Run the training recipe of a checkpoint, which makes it from nothing: python -m training.RECIPE.

    The checkpoint goes to build/RECIPE, or where --out says.

    \b
    Examples:
      zoo train denoiser-elements --workers 8
      zoo train sd-alanine-dipeptide-cg --data md
    """
    from zoo.train_command import train as run

    raise typer.Exit(run(recipe, arguments or [], repo=repo, console=_console()))


@app.command(cls=_WithLists)
def finetune(
    name: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="To start from: name from 'zoo list', or a folder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The new checkpoint.")],
    structure: Annotated[
        list[Path] | None,
        typer.Option("--structure", metavar="CRYSTAL...", help="For a denoiser: perfect crystals."),
    ] = None,
    trajectory: Annotated[
        list[Path] | None,
        typer.Option("--trajectory", metavar="MD...", help="For score dynamics: MD of one molecule."),
    ] = None,
    md: Annotated[
        Path | None, typer.Option("--md", metavar="MOLECULE", help="Or make MD of this molecule first.")
    ] = None,
    md_ps: Annotated[float | None, typer.Option("--md-ps", help="ps of that MD (500).")] = None,
    force_field: Annotated[
        list[str] | None, typer.Option("--force-field", metavar="XML...", help="Of that MD, for OpenMM.")
    ] = None,
    calculator: Annotated[
        str | None,
        typer.Option("--calculator", help="MD by ASE instead: mace, or package.module:Class."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Of the calculator; a MACE file is a pickle, so trust it.")
    ] = None,
    topology: Annotated[
        Path | None, typer.Option("--topology", help="PDB of the atoms of the MD, solvent and all.")
    ] = None,
    lag: Annotated[
        float | None, typer.Option("--lag", help="ps of one step of score dynamics (the checkpoint's).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="K, of the MD (the checkpoint's).")
    ] = None,
    interval: Annotated[
        float | None, typer.Option("--interval", help="ps between frames, if the files do not say.")
    ] = None,
    dihedral: Annotated[
        list[str] | None, typer.Option("--dihedral", help='For the report: "C1 C2 C3 C4"; repeatable.')
    ] = None,
    from_nothing: Annotated[
        bool, typer.Option("--from-nothing", help="Random weights to start from, the same architecture.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.1, help="Denoiser: at most, of training (15).")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Of training (3000); of each round of a denoiser's (500)."),
    ] = None,
    rehearsal: Annotated[
        float | None,
        typer.Option("--rehearsal", min=0.0, max=0.99, help="Denoiser: share of old lattices (0.5)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the training.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FOLDER if it exists.")] = False,
) -> None:
    """Teach a checkpoint a crystal or a molecule of your own; takes minutes.

    A denoiser learns from perfect structures alone.  It stops by itself after the first round at whose end
    held-out noised copies come back, and reports up to which noise they do, and what was forgotten of the
    old lattices.

    Score dynamics learns from your own MD, in water or not: solvent is stripped, periodic images are
    mended, a part is held out.  It ends with free energies and rates beside held-out MD, and a verdict.
    Of a family such as sd-alkanes any molecule may be given, else MD of the checkpoint's own molecule.

    The same command continues a run that was interrupted.

    \b
    Examples:
      zoo finetune denoiser-elements --structure my.cif -o my-denoiser
      zoo finetune denoiser-elements --structure a.cif b.vasp -o mine --minutes 30
      zoo finetune sd-alkanes --trajectory 'run*.xtc' --topology top.pdb --lag 1.0 -o my-sd
      zoo finetune sd-alanine-dipeptide --trajectory hot.xtc --topology top.pdb --temperature 350 -o sd-hot
      zoo finetune sd-alkanes --md molecule.pdb --md-ps 1000 -o my-sd
      zoo finetune sd-alkanes --md molecule.pdb --calculator mace --model mace.model -o my-sd
    """
    from zoo.finetune_command import finetune as run

    given = {
        "--md": md, "--md-ps": md_ps, "--force-field": force_field, "--calculator": calculator,
        "--model": model, "--minutes": minutes, "--rehearsal": rehearsal, "--lag": lag,
        "--interval": interval, "--temperature": temperature,
        "--topology": topology, "--dihedral": dihedral, "--from-nothing": from_nothing, "--steps": steps,
        "--seed": seed, "--workers": workers,
    }  # fmt: skip
    raise typer.Exit(run(name, structure or [], trajectory or [], output, given, overwrite=overwrite))


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the structures and picture go.")
    ] = Path("zoo-demo"),
) -> None:
    """Denoise a bundled MD snapshot near melting; print a table, write structures and a picture.

    \b
    Example:
      zoo demo -o demo
    """
    require_ovito()
    from zoo.demo import run

    raise typer.Exit(run(output, console=_console()))


@app.command()
def space(
    port: Annotated[int, typer.Option("-p", "--port", min=1, max=65535, help="Of the page.")] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
) -> None:
    """Serve the web page: denoise crystals and roll molecules out in a browser, on this machine.

    It needs the space extra (Gradio); it keeps no uploads and asks nothing of other machines.

    \b
    Examples:
      zoo space
      zoo space --port 8000
    """
    require_ovito()
    from zoo.space_command import serve

    serve(host, port)


def require_ovito() -> None:
    """Raise MissingExtraError unless OVITO can be imported; cheaper than finding out after the work."""
    from importlib.util import find_spec

    if find_spec("ovito") is None:
        raise MissingExtraError('structure analysis needs OVITO: pip install "score-zoo[analysis]"')


def _console() -> Any:
    from rich.console import Console

    return Console()


def _fail(message: object) -> None:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 success, 1 an error named in one line on stderr, 2 wrong usage, 130 interrupted, 141 the reader
    of our output went away.
    """
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
        return status
    except ZooError as exc:
        _fail(exc)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes stdout once more on exit; give it somewhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE
    except MemoryError:
        _fail("not enough memory for this structure")
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        _fail(f"{where}{exc.strerror or exc}")
    return EXIT_ERROR


def _invoke(arguments: Sequence[str] | None) -> int:
    try:
        status = app(args=arguments, prog_name="zoo", standalone_mode=False)
    except Exception as exc:
        # usage errors; their class has moved between releases of typer, their methods have not
        message: Callable[[], str] | None = getattr(exc, "format_message", None)
        if message is None:
            raise
        context = getattr(exc, "ctx", None)
        text = " ".join(message().split())
        if text and not type(exc).__name__.startswith("NoArgs"):
            command = context.command_path if context is not None else "zoo"
            _fail(f"{text.rstrip('.')} (see '{command} --help')")
        else:
            print(context.get_help() if context is not None else text, file=sys.stderr)
        return EXIT_USAGE
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
