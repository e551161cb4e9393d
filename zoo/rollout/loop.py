"""The loop over time.

Walker w is moved by the noise of (seed, w, step, attempt) and nothing else, and always sits in slot
w % batch_slots of the network's batch.  Its trajectory is therefore the same whoever else runs,
whatever was redrawn for others, and wherever the run was interrupted.
"""

from __future__ import annotations

import hashlib
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from zoo.errors import StructureError
from zoo.molecules.checks import KINDS, Limits, Validity, kind_of
from zoo.molecules.molecule import Molecule, handedness
from zoo.rollout.errors import OutOfDistributionWarning, RolloutError
from zoo.rollout.formats import nanometers
from zoo.rollout.output import Output, check_output
from zoo.rollout.report import Progress, RolloutReport
from zoo.rollout.state import Settings, State, report_of

if TYPE_CHECKING:
    import mdtraj

Array = npt.NDArray[np.float64]
Observer = Callable[[int, Array, Sequence[int]], object]
"""Called with the step, positions (n_walkers, n_sites, 3) Å, not to be changed, and the running walkers."""

Mapping = Callable[[Callable[[list[int]], Any], Iterable[list[int]]], Iterable[Any]]
"""`map` and its like, which keep the order."""

_MOST_STEPS = 2**31 - 2  # XTC and DCD count frames in 32 bits
_SEEDS = 2**63


class Propagator(Protocol):
    """What a rollout needs of a model; `zoo.ScoreDynamics` has it."""

    @property
    def molecule(self) -> Molecule: ...
    @property
    def lag_time(self) -> float:
        """Of one step, ps."""

    @property
    def checkpoint_id(self) -> str:
        """Name and version."""

    @property
    def weights_sha256(self) -> str: ...
    @property
    def bond_lengths(self) -> Array:
        """(n_site_bonds,) Å."""

    @property
    def limits(self) -> Limits: ...
    @property
    def batch_slots(self) -> int:
        """Walkers in one batch of the network."""

    def noise(self, seed: int, walkers: Sequence[int], step: int, attempt: int) -> Any:
        """Random numbers for one proposal of each walker, a pure function of the arguments."""

    def propose(self, positions: Array, walkers: Sequence[int], noise: Any) -> Array:
        """(n, n_sites, 3) Å one lag step later; no two walkers of a call share a slot."""

    def out_of_distribution(self, positions: Array) -> Array:
        """(n,) 1 at the edge of the training data, more beyond it."""


#: Out-of-distribution scores above this are warned of.  At 1 one ordinary frame in a thousand would be, and
#: the strangest of 20 010 frames of alanine dipeptide held out from training is at 1.21.
FAR = 1.25


@dataclass
class Rollout:
    """What `roll_out` returns.

    Parameters
    ----------
    trajectories
        One per walker, the start frame first, `lag_time` ps apart; empty unless kept.
    lag_time
        ps between frames.
    report
        Counts, reasons, speed and settings.
    files
        The trajectory files, if any.
    """

    trajectories: list[mdtraj.Trajectory]
    lag_time: float
    report: RolloutReport
    files: tuple[Path, ...] = ()


def roll_out(
    model: Propagator,
    start_positions: npt.ArrayLike,
    n_steps: int,
    n_walkers: int = 1,
    seed: int = 0,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    keep: bool | None = None,
    max_redraws: int = 100,
    progress: Callable[[Progress], object] | None = None,
    observers: Iterable[Observer] = (),
    inputs: Iterable[str | os.PathLike[str]] = (),
    threads: int = 1,
) -> Rollout:
    """Let walkers take lag steps, and keep or write where they go.

    A proposal that is no longer the molecule (a broken bond, a clash, an inverted centre, a number
    that is not finite) is drawn again from the same state with fresh noise, and counted.  A walker
    whose first draw and `max_redraws` redraws of one step are all bad stops, and the others go on.

    Parameters
    ----------
    model
        The propagator.
    start_positions : (n_frames, n_sites, 3) or (n_sites, 3) Å
        Several frames: one walker each, or as many walkers as `n_walkers` says, which must be a
        multiple of the number of frames; walker w starts from frame w % n_frames.
    n_steps
        Lag steps of each walker, counted from the start, also when a run is continued.
    seed
        0 to 2**63 - 1.
    output
        Trajectory file: ``.xtc``, ``.dcd``, ``.h5`` or ``.hdf5``; with several walkers ``run.xtc``
        stands for ``run-00.xtc``, ``run-01.xtc``, ...  Beside it go ``run.pdb`` (the sites),
        ``run.json`` (the report) and ``run.state.npz``.  If these are there from the same run, it
        is continued from where it was, to the frame and to the bit.
    overwrite
        Start over in place of what is there.
    keep
        Whether to return the trajectories; by default only without `output`.  With `output` they
        are read back from the files, in the precision of the format.
    max_redraws
        Redraws of one walker in one step before it stops.
    progress
        Called before the first and after every step.
    observers
        Called with (step, positions, running walkers) after every step of this call, and with
        step 0 where the run begins.
    inputs
        The files that the start was read from: they are never written over, and a bad start is told
        by the name of its file.
    threads
        Batches of ``model.batch_slots`` walkers that are computed at the same time.  The result does not
        depend on it.  More of torch's own threads are of little use here, and two kinds of threads get in
        each other's way: ``torch.set_num_threads(1)`` goes well with it.

    Raises
    ------
    StructureError
        A start that is not finite or not a valid structure of the molecule.
    RolloutError
        Impossible numbers, output that cannot be written or belongs to another run.
    MissingExtraError
        HDF5 without PyTables.

    Warns
    -----
    OutOfDistributionWarning
        A start farther from the training data than held-out MD.
    """
    n_steps = _whole(n_steps, "number of steps", 1, _MOST_STEPS)
    n_walkers = _whole(n_walkers, "number of walkers", 1)
    seed = _whole(seed, "seed", 0, _SEEDS - 1)
    max_redraws = _whole(max_redraws, "number of redraws", 0)
    threads = _whole(threads, "number of threads", 1)
    path = None if output is None else check_output(output)
    frames = _frames(start_positions, model.molecule.n_sites)
    starts = _starts(frames, n_walkers)
    inputs = tuple(inputs)
    validity = _validity(model, starts, len(frames), source=str(inputs[0]) if len(inputs) == 1 else "")
    first = State.start(starts)
    settings = Settings(
        checkpoint=model.checkpoint_id,
        weights=model.weights_sha256,
        lag_time=float(model.lag_time),
        seed=seed,
        walkers=len(starts),
        start=hashlib.sha256(np.ascontiguousarray(frames, dtype="<f8").tobytes()).hexdigest(),
        suffix="" if path is None else path.suffix.lower(),
    )
    topology = model.molecule.topology()
    run = _Run(model, validity, settings, n_steps, max_redraws, progress, tuple(observers), threads)
    if path is None:
        run.out_of_distribution = _strangeness(model, starts)
        return _in_memory(run, first, topology, keep=keep is not False)
    with Output(path, settings, topology, overwrite=overwrite, inputs=inputs) as files:
        return _on_disk(run, first, files, keep=bool(keep))


def _in_memory(run: _Run, first: State, topology: mdtraj.Topology, *, keep: bool) -> Rollout:
    kept: list[npt.NDArray[np.float32]] = []

    def take(state: State) -> None:
        if keep:
            kept.append(nanometers(state.positions))

    take(first)
    last = run.advance_all(first, take, fresh=True)
    trajectories = []
    if keep:
        import mdtraj

        for w, n in enumerate(last.frames):
            xyz = np.stack([frame[w] for frame in kept[:n]])
            times = run.settings.lag_time * np.arange(n)
            trajectories.append(mdtraj.Trajectory(xyz, topology, time=times))
    return Rollout(trajectories, run.settings.lag_time, run.report(last))


def _on_disk(run: _Run, first: State, files: Output, *, keep: bool) -> Rollout:
    state, saved = first, files.saved
    if saved is None:
        run.out_of_distribution = _strangeness(run.model, first.positions)
        files.begin(first, run.out_of_distribution)
    else:
        run.out_of_distribution, state, run.seconds_before = (
            saved.out_of_distribution,
            saved.state,
            saved.seconds,
        )
        _warn(run.out_of_distribution)
        if not saved.frames.any():
            files.add(first)  # killed before the very first flush
    run.files = tuple(str(path) for path in files.names.trajectories)
    last = state

    def take(new: State) -> None:
        nonlocal last
        files.add(new)
        last = new
        if files.due():
            files.flush(run.report(new))

    try:
        files.flush(run.report(state))
        run.advance_all(state, take, fresh=saved is None)
    except RolloutError:  # the disk is full, and has been left in order
        raise
    except KeyboardInterrupt:
        files.finish(run.report(last))
        raise
    except BaseException:  # a bug of the model or an observer: the steps that are done are done
        with suppress(RolloutError):
            files.finish(run.report(last))
        raise
    report = run.report(last)
    files.finish(report)
    return Rollout(
        files.read() if keep else [], run.settings.lag_time, report, tuple(files.names.trajectories)
    )


@dataclass
class _Run:
    """What stays the same from step to step, and the clock."""

    model: Propagator
    validity: Validity
    settings: Settings
    n_steps: int
    max_redraws: int
    progress: Callable[[Progress], object] | None
    observers: tuple[Observer, ...]
    threads: int = 1
    files: tuple[str, ...] = ()
    seconds_before: float = 0.0

    def __post_init__(self) -> None:
        self.out_of_distribution: Array = np.zeros(self.settings.walkers)
        self._started = time.perf_counter()

    def report(self, state: State) -> RolloutReport:
        return report_of(
            self.settings,
            state,
            max(self.n_steps, state.step),
            self.max_redraws,
            self.seconds_before + time.perf_counter() - self._started,
            self.out_of_distribution,
            self.files,
        )

    def advance_all(self, state: State, take: Callable[[State], None], *, fresh: bool) -> State:
        """Step until all is done or every walker has stopped; ``take`` is given each new state."""
        self._started = time.perf_counter()
        at_first = state.accepted
        self._tell(state, at_first)
        if fresh:
            self._observe(state)
        with _mapping(self.threads) as mapping:
            while state.step < self.n_steps and state.running:
                state = advance(
                    self.model,
                    self.validity,
                    state,
                    seed=self.settings.seed,
                    max_redraws=self.max_redraws,
                    mapping=mapping,
                )
                take(state)
                self._observe(state)
                self._tell(state, at_first)
        return state

    def _observe(self, state: State) -> None:
        for observer in self.observers:
            observer(state.step, state.positions, state.running)

    def _tell(self, state: State, at_first: int) -> None:
        if self.progress is not None:
            self.progress(
                Progress(
                    state.step,
                    self.n_steps,
                    len(state.running),
                    state.accepted,
                    int(state.rejected.sum()),
                    (state.accepted - at_first) * self.settings.lag_time,
                    time.perf_counter() - self._started,
                )
            )


@contextmanager
def _mapping(threads: int) -> Iterator[Mapping]:
    """`map`, or that of a pool of threads."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="zoo-rollout") as pool:
        yield pool.map


def advance(
    model: Propagator,
    validity: Validity,
    state: State,
    *,
    seed: int,
    max_redraws: int,
    mapping: Mapping = map,
) -> State:
    """The state one lag step later; ``state`` itself is left alone.

    Bad proposals are drawn again from the same positions with the noise of the next attempt.  A
    walker whose first draw and `max_redraws` redraws are all bad stays where it was and stops.
    """
    step = state.step + 1
    positions, rejected = state.positions.copy(), state.rejected.copy()
    frames, stopped = state.frames.copy(), list(state.stopped)
    pending, reasons = state.running, dict[int, str]()
    for attempt in range(max_redraws + 1):
        reasons = {}
        for batch, proposal in mapping(
            partial(_proposed, model, state, seed, attempt), batches(pending, model.batch_slots)
        ):
            for row, (walker, reason) in enumerate(zip(batch, validity.check(proposal, batch), strict=True)):
                if reason is None:
                    positions[walker] = proposal[row]
                    frames[walker] += 1
                else:
                    reasons[walker] = reason
                    rejected[walker, KINDS.index(kind_of(reason))] += 1
        pending = sorted(reasons)
        if not pending:
            break
    for walker, reason in reasons.items():
        tries = "the only proposal was" if not max_redraws else f"all {max_redraws + 1} proposals were"
        stopped[walker] = f"step {step}: {tries} bad, the last: {reason}"
    positions.setflags(write=False)
    return replace(
        state, step=step, positions=positions, frames=frames, rejected=rejected, stopped=tuple(stopped)
    )


def _proposed(
    model: Propagator, state: State, seed: int, attempt: int, batch: list[int]
) -> tuple[list[int], Array]:
    noise = model.noise(seed, batch, state.step + 1, attempt)
    return batch, model.propose(state.positions[batch], batch, noise)


def batches(walkers: Sequence[int], slots: int) -> list[list[int]]:
    """Walkers in as few calls as possible, no two in the same slot w % slots.

    All of 0, 1, 2, ... make the calls w // slots; what is left of them, to be redrawn, fewer.
    """
    calls: list[list[int]] = []
    used: dict[int, int] = {}
    for walker in walkers:
        call = used.get(walker % slots, 0)
        used[walker % slots] = call + 1
        if call == len(calls):
            calls.append([])
        calls[call].append(walker)
    return calls


def _whole(value: int, name: str, least: int, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise RolloutError(f"the {name} must be a whole number, found {value!r}") from None
    if number < least or (most is not None and number > most):
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise RolloutError(f"the {name} must be {span}, found {number}")
    return number


def _frames(positions: npt.ArrayLike, n_sites: int) -> Array:
    frames = np.array(positions, dtype=np.float64)
    if frames.ndim == 2:
        frames = frames[None]
    if frames.ndim != 3 or frames.shape[1:] != (n_sites, 3) or not len(frames):
        raise StructureError(
            f"start positions have shape {frames.shape}, the model needs (n_frames, {n_sites}, 3)"
        )
    return frames


def _starts(frames: Array, n_walkers: int) -> Array:
    """Start positions by walker, (n_walkers, n_sites, 3)."""
    n = len(frames)
    if n_walkers == 1:
        n_walkers = n
    if n_walkers % n:
        raise RolloutError(
            f"{n_walkers} walkers cannot share {n} start frames evenly; "
            f"take a multiple of {n} walkers, or fewer frames"
        )
    starts = np.tile(frames, (n_walkers // n, 1, 1))
    starts.setflags(write=False)
    return starts


def _validity(model: Propagator, starts: Array, n_frames: int, source: str = "") -> Validity:
    """The checks, with each walker's own handedness, passed by every start."""
    centres = model.molecule.centres
    validity = Validity(model.molecule, model.bond_lengths, handedness(starts, centres), model.limits)
    for walker, reason in enumerate(validity.check(starts, range(len(starts)))):
        if reason is not None:
            which = "the start" if n_frames == 1 else f"start frame {walker + 1}"
            where = f"{source}: " if source else ""
            raise StructureError(f"{where}{which} is not a valid structure of this molecule: {reason}")
    return validity


def _strangeness(model: Propagator, starts: Array) -> Array:
    found = np.asarray(model.out_of_distribution(starts), dtype=np.float64)
    _warn(found)
    return found


def _warn(out_of_distribution: Array) -> None:
    far = np.flatnonzero(~(out_of_distribution <= FAR))
    if len(far):
        worst = int(far[np.argmax(out_of_distribution[far])])
        which = "the start" if len(out_of_distribution) == 1 else f"the start of walker {worst}"
        more = f" (and {len(far) - 1} more)" if len(far) > 1 else ""
        warnings.warn(
            f"{which}{more} is far outside the training data: out-of-distribution score "
            f"{out_of_distribution[worst]:.2f}, where 99.9 % of held-out MD stays below 1; "
            "the first steps may be unphysical",
            OutOfDistributionWarning,
            stacklevel=4,
        )
