"""The training loop: exact resume, exponential moving average, many devices, a log one can plot.

Needs torch, numpy, safetensors and, for other devices than this process's CPU, accelerate.  The loss of
step k must depend on nothing but the parameters and ``np.random.default_rng([seed, k])``; then a run
that was killed and started again gives bit for bit the parameters of one that was not (same machine,
same number of threads).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE = "state.safetensors"
LOG = "log.jsonl"
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class LoopConfig:
    """Schedule of a run; all of it is stored with the state and must not change on resume.

    Raises
    ------
    TrainingError : an unknown precision, a learning rate that is not positive, or a negative seed.
    """

    n_steps: int = 2600
    learning_rate: float = 2e-3
    warmup: int = 200
    final_fraction: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_every: float = 120.0  # seconds
    log_every: int = 50  # steps
    precision: str = "fp32"  # or "bf16": what the losses let networks multiply in; all else is float32

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if not self.learning_rate > 0:
            raise TrainingError(f"the learning rate is {self.learning_rate:g}: it must be greater than 0")
        if self.seed < 0:
            raise TrainingError(f"the seed is {self.seed}: it must be at least 0")


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the full rate down to ``final_fraction`` of it."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    x = (step - config.warmup) / max(config.n_steps - config.warmup, 1)
    low = config.final_fraction
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(x, 1.0))))


def train(
    model: nn.Module,
    make_batch: Callable[[np.random.Generator], Any],
    losses: Callable[[nn.Module, Any, np.random.Generator, int], Sequence[Callable[[], Tensor]]],
    config: LoopConfig,
    folder: Path,
    *,
    workers: int = 1,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    stop_after: int | None = None,
    samples_per_step: int | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    accelerator: Accelerator | None = None,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Minimise the sum of ``losses`` and return the averaged parameters.

    Parameters
    ----------
    make_batch : builds the data of one step; runs one step ahead in a thread of its own.
    losses : (model, batch, rng, step) -> terms of the loss as functions without arguments.
    folder : state and log are kept here; an existing state is continued.
    workers : threads that work on the terms; the result does not depend on their number, since
        gradients are added in the order of the terms.
    report : called with a row of the log every ``log_every`` steps.
    stop_after : stop (after saving) once this many steps are done; for tests and time limits.
    samples_per_step : of all processes together; rows of the log then have ``samples_per_second``, the
        speed since the row before.
    evaluate : (model with the averaged parameters) -> more entries for each row of the log.
    accelerator : where to compute.  The batch is then a dict of tensors; each process works on every
        n-th row of it, and gradients are averaged over the processes, so the result is that of one
        process but for rounding.  Without it, on the CPU of this process.
    settings : what else must not change between a state and its continuation, such as the data's sha256.

    Raises
    ------
    TrainingError : the folder holds the state of a run with another configuration or a damaged log, another
        process trains in it, or there are no workers.
    """
    if workers < 1:
        raise TrainingError(f"{workers} threads: at least 1 is needed")
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator is None or accelerator.is_main_process:
        _hold(folder)
    device = torch.device("cpu") if accelerator is None else accelerator.device
    model.to(device)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    average = [p.detach().clone() for p in parameters]
    is_main = accelerator is None or accelerator.is_main_process
    step, spent = _resume(folder, _settings(config, settings), names, parameters, optimizer, average, is_main)
    if accelerator is not None:
        accelerator.wait_for_everyone()  # nobody writes before all have read
    saved = time.monotonic()
    started = time.monotonic() - spent
    recent: list[float] = []
    since, seconds_since = step, spent
    last = config.n_steps if stop_after is None else min(stop_after, config.n_steps)
    pool = ThreadPoolExecutor(workers)
    for rng, batch in _ahead(make_batch, config.seed, step, last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        terms = losses(model, _share(batch, accelerator), rng, step)
        value = _gradients(pool, parameters, terms)
        if accelerator is not None and accelerator.num_processes > 1:
            value = _mean_over_processes(accelerator, parameters, value)
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        step += 1
        # Short memory first, so that the average forgets the random start.
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(average, parameters, strict=True):
                a.lerp_(p, 1 - decay)
        recent.append(value)
        if is_main and (step % config.log_every == 0 or step == last):
            seconds = time.monotonic() - started
            row = {"step": step, "loss": float(np.mean(recent)), "seconds": round(seconds, 3)}
            if samples_per_step is not None:
                speed = samples_per_step * (step - since) / max(seconds - seconds_since, 1e-9)
                row["samples_per_second"] = round(speed, 1)
            if evaluate is not None:
                with _parameters_replaced(parameters, average):
                    row.update(evaluate(model))
            recent.clear()
            with (folder / LOG).open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            report({**row, "n_steps": config.n_steps})
            since, seconds_since = step, time.monotonic() - started
        if is_main and (time.monotonic() - saved > config.checkpoint_every or step == last):
            spent = time.monotonic() - started
            _save(folder, _settings(config, settings), step, spent, names, parameters, optimizer, average)
            saved = time.monotonic()
    pool.shutdown()
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return dict(zip(names, average, strict=True))


#: Descriptors of folders that this process trains in, by device and inode.
_held: dict[tuple[int, int], int] = {}


def _hold(folder: Path) -> None:
    """Keep other processes from training here while this one lives; a killed one lets go by itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    info = os.fstat(descriptor)
    if (info.st_dev, info.st_ino) in _held:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise TrainingError(f"another process is training in {folder}: wait for it, or stop it") from None
    _held[info.st_dev, info.st_ino] = descriptor


def _gradients(
    pool: ThreadPoolExecutor,
    parameters: list[nn.Parameter],
    terms: Sequence[Callable[[], Tensor]],
) -> float:
    """Set the gradients of the sum of ``terms``; returns its value."""

    def one(term: Callable[[], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        value = term()
        return float(value.detach()), torch.autograd.grad(value, parameters)

    total = 0.0
    sums = [torch.zeros_like(p) for p in parameters]
    for value, gradients in pool.map(one, terms):
        total += value
        for s, g in zip(sums, gradients, strict=True):
            s += g
    for p, s in zip(parameters, sums, strict=True):
        p.grad = s
    return total


def _share(batch: Any, accelerator: Accelerator | None) -> Any:
    """The rows of a batch that are this process's, on its device."""
    if accelerator is None:
        return batch
    rank, n = accelerator.process_index, accelerator.num_processes
    return {key: value[rank::n].to(accelerator.device) for key, value in batch.items()}


def _mean_over_processes(accelerator: Accelerator, parameters: list[nn.Parameter], value: float) -> float:
    """Average gradients, and the value of the loss, over the processes in one exchange."""
    gradients = [p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients if g is not None] + [gradients[0].new_tensor([value])])  # type: ignore[union-attr]
    mean: Tensor = accelerator.reduce(flat, reduction="mean")
    position = 0
    for p in parameters:
        p.grad = mean[position : position + p.numel()].view_as(p).clone()
        position += p.numel()
    return float(mean[-1])


@contextmanager
def _parameters_replaced(parameters: list[nn.Parameter], others: list[Tensor]) -> Iterator[None]:
    own = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, other in zip(parameters, others, strict=True):
            p.copy_(other)
        try:
            yield
        finally:
            for p, value in zip(parameters, own, strict=True):
                p.copy_(value)


def _ahead(
    make_batch: Callable[[np.random.Generator], Any], seed: int, first: int, last: int
) -> Iterator[tuple[np.random.Generator, Any]]:
    """Batches of the steps [first, last), each prepared while the one before is used."""

    def prepare(step: int) -> tuple[np.random.Generator, Any]:
        rng = np.random.default_rng([seed, step])
        return rng, make_batch(rng)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(prepare, first) if first < last else None
        for step in range(first, last):
            assert following is not None
            current = following.result()
            following = pool.submit(prepare, step + 1) if step + 1 < last else None
            yield current


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, in the order of their steps.

    Raises
    ------
    TrainingError : it is damaged.  A last line without an end, of a process that was killed while it wrote,
        is no damage: that row is left out.
    """
    whole = (folder / LOG).read_text().rpartition("\n")[0].splitlines()
    try:
        rows = [json.loads(line) for line in whole]
        if not all(isinstance(row["step"], int) for row in rows):
            raise ValueError("a step is no number")
    except (ValueError, KeyError, TypeError):
        raise TrainingError(f"{folder / LOG} is damaged: delete {folder} to start anew") from None
    return rows


def _settings(config: LoopConfig, settings: Mapping[str, str] | None) -> dict[str, Any]:
    return {**asdict(config), **(settings or {})}


def _save(
    folder: Path,
    settings: dict[str, Any],
    step: int,
    seconds: float,
    names: list[str],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, p, a in zip(names, parameters, average, strict=True):
        state = optimizer.state[p]
        tensors[f"model.{name}"] = p.detach()
        tensors[f"average.{name}"] = a
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{name}"] = state[key]
    metadata = {"step": str(step), "seconds": repr(seconds), "config": json.dumps(settings)}
    partial = folder / (STATE + ".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
    os.replace(partial, folder / STATE)


def _resume(
    folder: Path,
    settings: dict[str, Any],
    names: list[str],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    is_main: bool,
) -> tuple[int, float]:
    """Load an existing state into the arguments; returns the steps done and the seconds spent."""
    path = folder / STATE
    if not path.exists():
        if is_main:
            (folder / LOG).unlink(missing_ok=True)
        return 0, 0.0
    with safe_open(path, framework="pt") as state:
        metadata = state.metadata()
        before = {"precision": "fp32", **json.loads(metadata["config"])}
        either = {**before, **settings}
        changed = [k for k in either if before.get(k) != settings.get(k) and not k.endswith("_every")]
        if changed:
            raise TrainingError(
                f"{path} was trained with other settings ({', '.join(changed)}): "
                "use the same settings to continue or another folder to start anew"
            )
        with torch.no_grad():
            for name, p, a in zip(names, parameters, average, strict=True):
                p.copy_(state.get_tensor(f"model.{name}"))
                a.copy_(state.get_tensor(f"average.{name}"))
                optimizer.state[p] = {
                    key: state.get_tensor(f"{key}.{name}").to("cpu" if key == "step" else p.device)
                    for key in ("exp_avg", "exp_avg_sq", "step")
                }
    step = int(metadata["step"])
    log = folder / LOG
    if is_main and log.exists():  # rows after the saved state will be written again
        rows = [row for row in read_log(folder) if row["step"] <= step]
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return step, float(metadata["seconds"])
