"""The training loop: a killed run and an uninterrupted one end bit for bit in the same place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import denoiser_elements, lattices
from training.denoising import DenoisingConfig, Naming, batch_maker, denoising_losses
from training.errors import TrainingError
from training.loop import LOG, LoopConfig, _gradients, learning_rate, read_log, train
from zoo.backbones.moments import Moments, MomentsConfig
from zoo.denoiser import Denoiser

ARCHITECTURE = MomentsConfig(n_channels=4, n_radial=3, n_layers=1)
DATA = DenoisingConfig(atoms_per_batch=150, rollout_after=3)
LOOP = LoopConfig(n_steps=6, warmup=2, log_every=1)


@pytest.fixture(autouse=True)
def _small_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattices, "draw", lambda rng: lattices.bulk_sample("simple cubic", rng, 40))


def run(folder: Path, loop: LoopConfig = LOOP, **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = Moments(ARCHITECTURE)
    cutoff = ARCHITECTURE.cutoff
    return train(network, batch_maker(DATA, cutoff), denoising_losses(DATA, cutoff), loop, folder, **kwargs)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    for stop in (2, 4):  # on both sides of the step at which the network first sees its own output
        run(tmp_path / "pieces", stop_after=stop)
    assert not same(whole, run(tmp_path / "other", stop_after=4))
    assert same(whole, run(tmp_path / "pieces"))
    assert steps_logged(tmp_path / "pieces") == [1, 2, 3, 4, 5, 6]
    assert same(whole, run(tmp_path / "pieces"))  # a finished run stays as it is


def test_a_run_killed_between_two_saves_repeats_the_lost_steps(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "killed", stop_after=2)
    state = (tmp_path / "killed" / "state.safetensors").read_bytes()

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", report=kill)
    assert (tmp_path / "killed" / "state.safetensors").read_bytes() == state
    assert steps_logged(tmp_path / "killed") == [1, 2, 3, 4]
    assert same(whole, run(tmp_path / "killed"))
    assert steps_logged(tmp_path / "killed") == [1, 2, 3, 4, 5, 6]


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    assert same(run(tmp_path / "one", workers=1), run(tmp_path / "two", workers=2))


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    assert not same(run(tmp_path / "a"), run(tmp_path / "b", LoopConfig(n_steps=6, warmup=2, seed=1)))


@pytest.mark.parametrize("change", [{"n_steps": 7}, {"learning_rate": 1e-4}, {"seed": 1}])
def test_a_state_of_other_settings_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, stop_after=1)
    with pytest.raises(TrainingError, match=f"other settings \\({next(iter(change))}\\)"):
        run(tmp_path, LoopConfig(**{"n_steps": 6, "warmup": 2, **change}))


def test_a_log_whose_last_line_was_cut_off_is_continued(tmp_path: Path) -> None:
    config = LoopConfig(n_steps=6, warmup=2, log_every=2)
    expected = run(tmp_path / "whole", config)
    run(tmp_path / "parts", config, stop_after=4)
    with (tmp_path / "parts" / LOG).open("a") as log:
        log.write('{"step": 6, "lo')
    assert [row["step"] for row in read_log(tmp_path / "parts")] == [2, 4]
    assert same(run(tmp_path / "parts", config), expected)
    assert [row["step"] for row in read_log(tmp_path / "parts")] == [2, 4, 6]


@pytest.mark.parametrize("row", ["{", "3", '{"loss": 1.0}', '{"step": "2"}'])
def test_a_damaged_log_is_told(tmp_path: Path, row: str) -> None:
    run(tmp_path, stop_after=1)
    (tmp_path / LOG).write_text(f"{row}\n")
    with pytest.raises(TrainingError, match=r"log.jsonl is damaged: delete .* to start anew"):
        run(tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from training.loop import _hold; "
        f"_hold(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match="another process is training in"):
            run(tmp_path)
        other.kill()  # however it ends, the folder is free again
    run(tmp_path)


def test_how_often_to_report_may_change(tmp_path: Path) -> None:
    run(tmp_path, stop_after=1)
    run(tmp_path, LoopConfig(n_steps=6, warmup=2, log_every=3, checkpoint_every=1.0))
    assert steps_logged(tmp_path) == [1, 3, 6]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"step": 999}\n')
    run(tmp_path, stop_after=1)
    assert steps_logged(tmp_path) == [1]


def test_the_loss_falls(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    loop = LoopConfig(n_steps=40, warmup=5, log_every=10, learning_rate=1e-2)
    run(tmp_path, loop, report=rows.append)
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]
    assert [r["step"] for r in rows] == [10, 20, 30, 40]
    assert {r["n_steps"] for r in rows} == {40}


def test_learning_rate_schedule() -> None:
    loop = LoopConfig(n_steps=1100, learning_rate=1.0, warmup=100, final_fraction=0.01)
    expected = {0: 0.01, 49: 0.5, 99: 1.0, 100: 1.0, 600: 0.505, 1100: 0.01, 2000: 0.01}
    for step, value in expected.items():
        assert learning_rate(loop, step) == pytest.approx(value)


def test_the_gradient_of_the_sum_is_the_sum_of_gradients() -> None:
    from concurrent.futures import ThreadPoolExecutor

    net = nn.Linear(3, 2)
    x = torch.arange(12.0).view(4, 3)
    parameters = list(net.parameters())
    terms: list[Callable[[], Tensor]] = [lambda k=k: net(x[k]).square().sum() for k in range(4)]  # type: ignore[misc]
    with ThreadPoolExecutor(2) as pool:
        value = _gradients(pool, parameters, terms)
    expected = net(x).square().sum()
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    for p, g in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(p.grad, g)


class _Exact(nn.Module):
    """Knows the answer to every structure by its number of edges; moves nothing otherwise."""

    def __init__(self, answers: dict[int, Tensor]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, graph: Any, context: Any = None) -> Tensor:
        return self.answers.get(graph.n_edges, torch.zeros(graph.n_atoms, 3))


def test_the_loss_is_the_weighted_error_of_the_way_back() -> None:
    cutoff = ARCHITECTURE.cutoff
    rng = np.random.default_rng(1)
    batch = batch_maker(DATA, cutoff)(rng)
    assert sum(len(b.positions) for b in batch) >= DATA.atoms_per_batch
    n_atoms = sum(len(b.positions) for b in batch)
    way = [b.sample.positions - b.positions for b in batch]
    way = [w - w.mean(0) for w in way]
    terms = denoising_losses(DATA, cutoff)(_Exact({}), batch, rng, 0)
    for term, b, w in zip(terms, batch, way, strict=True):
        weight = 1 / (3 * n_atoms * (b.sigma**2 + DATA.error_floor**2))
        assert float(term()) == pytest.approx((w**2).sum() * weight, rel=1e-4)
    exact = _Exact({b.graph.n_edges: torch.from_numpy(w).float() for b, w in zip(batch, way, strict=True)})
    assert sum(float(t()) for t in denoising_losses(DATA, cutoff)(exact, batch, rng, 0)) < 1e-8


def test_the_recipe_writes_a_checkpoint_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(denoiser_elements.RECIPE, architecture=ARCHITECTURE.to_dict(), data=DATA)
    monkeypatch.setattr(denoiser_elements, "RECIPE", small)
    threads = torch.get_num_threads()
    try:
        whole, pieces = tmp_path / "whole", tmp_path / "pieces"
        arguments = ["--steps", "6", "--seed", "3"]
        assert denoiser_elements.main([*arguments, "--out", str(whole)]) == 0
        assert denoiser_elements.main([*arguments, "--out", str(pieces), "--stop-after", "4"]) == 0
        assert not pieces.exists()
        assert denoiser_elements.main([*arguments, "--out", str(pieces)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert (whole / "model.safetensors").read_bytes() == (pieces / "model.safetensors").read_bytes()
    assert "wrote" in capsys.readouterr().out
    denoiser = Denoiser.from_pretrained(whole)
    assert denoiser.name == "denoiser-elements"
    assert denoiser.config.lattices == lattices.LATTICES
    section = denoiser.metrics["sections"]["training"]
    assert section["command"] == "python -m training.denoiser_elements --seed 3"
    assert section["results"][0]["n_steps"] == 6
    assert section["loop"]["seed"] == 3
    assert section["data"]["atoms_per_batch"] == DATA.atoms_per_batch


@pytest.mark.slow
def test_names_of_crystals_help_to_train_and_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import denoiser_silica

    small = replace(
        denoiser_silica.RECIPE,
        architecture={"n_channels": 4, "n_layers": 1, "radial_width": 8},
        data=DenoisingConfig(atoms_per_batch=300),
    )
    threads = torch.get_num_threads()
    weights = []
    try:
        for weight in (0.0, 5.0):
            monkeypatch.setattr(denoiser_silica, "RECIPE", replace(small, naming=weight))
            out = tmp_path / str(weight)
            assert denoiser_silica.main(["--steps", "4", "--out", str(out)]) == 0
            denoiser = Denoiser.from_pretrained(out)
            weights.append(denoiser.weights())
            section = denoiser.metrics["sections"]["training"]
            assert section.get("naming", 0.0) == weight
            assert section["results"][0]["n_parameters"] == sum(w.numel() for w in weights[-1].values())
    finally:
        torch.set_num_threads(threads)
    assert weights[0].keys() == weights[1].keys()
    assert not same(weights[0], weights[1])


@pytest.mark.slow
def test_the_loss_of_names_is_their_cross_entropy() -> None:
    from training.polymorph_structures import draw_silica
    from zoo.backbones.mace_network import MaceConfig, MaceNetwork

    cutoff = MaceConfig().cutoff
    network = MaceNetwork(MaceConfig(n_channels=4, n_layers=1, radial_width=8))
    model = Naming(network, ("alpha-quartz", "beta-quartz"), 0.5)
    rng = np.random.default_rng(0)
    batch = batch_maker(DenoisingConfig(atoms_per_batch=300), cutoff, draw_silica)(rng)
    losses = denoising_losses(DenoisingConfig(), cutoff)
    with torch.no_grad():
        whole = sum(float(t()) for t in losses(model, batch, rng, 0))
        plain = sum(float(t()) for t in losses(network, batch, rng, 0))
        wrong = 0.0
        for b in batch:
            chances = model.names(network.scalars(b.graph)).log_softmax(-1)
            assert b.sample.names is not None
            for chance, name in zip(chances, b.sample.names.tolist(), strict=True):
                index = model.classes.index(name) if name in model.classes else 2
                wrong -= float(chance[index])
    n = sum(len(b.positions) for b in batch)
    assert whole - plain == pytest.approx(0.5 * wrong / n, rel=1e-3)
