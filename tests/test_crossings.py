"""How often a propagator goes over a barrier in its own equilibrium: made what it is in MD."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from training.metrics import is_current
from training.score_dynamics import crossings
from training.score_dynamics.crossings import LIMIT, fitted_shift, md_rates, shift_to, write_shift
from training.score_dynamics.transitions import HeadData
from zoo.checkpoint import read_metrics
from zoo.errors import CheckpointError, ZooError
from zoo.molecules.start import load_start
from zoo.score_dynamics import ConditionalDenoiser, ScoreDynamics
from zoo.sides import Sides, SidesConfig

CG = Path(zoo.__file__).parent / "checkpoints" / "sd-alanine-dipeptide-cg"
TORSIONS = ((0, 1, 3, 5), (1, 3, 5, 6))
CONFIG = SidesConfig(TORSIONS, (0.0, 125.0))


def angles(*phi: float) -> torch.Tensor:
    return torch.deg2rad(torch.tensor([[each, 50.0] for each in phi]))


def test_a_shift_makes_it_likelier_to_change_from_where_it_is() -> None:
    torch.manual_seed(0)
    plain, shifted = Sides(CONFIG), Sides(replace(CONFIG, shift=(0.5, 0.25)))
    shifted.load_state_dict(plain.state_dict())
    x = angles(-100.0, 60.0, 130.0)
    # side 0 twice, where side 1 is likelier, and side 1 once, where it is less likely
    assert (shifted.of_angles(x) - plain.of_angles(x)).tolist() == pytest.approx([0.5, -0.25, 0.5], abs=1e-6)


def test_a_shift_of_nothing_is_no_part_of_a_config() -> None:
    assert "shift" not in CONFIG.to_json()
    told = replace(CONFIG, shift=(0.5, 0.25)).to_json()
    assert SidesConfig.from_json(json.loads(json.dumps(told)), 10).shift == (0.5, 0.25)
    assert SidesConfig.from_json(CONFIG.to_json(), 10) == CONFIG
    for wrong in ([0.5], [0.5, math.nan], [9.0, 0.0], "no"):
        with pytest.raises(CheckpointError, match="sides of a barrier are not valid"):
            SidesConfig.from_json({**told, "shift": wrong}, 10)


def test_rates_of_md_are_shares_of_what_begins_on_a_side() -> None:
    data = HeadData(
        angles(60.0, 60.0, -60.0, -60.0, -60.0),
        torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]),
        torch.tensor([0.75, 0.25, 0.5, 0.1, 0.4], dtype=torch.float64),
    )
    assert md_rates(data, Sides(CONFIG)) == pytest.approx((0.1, 0.25))


def test_the_mean_probability_becomes_the_one_that_is_wanted() -> None:
    log_odds = torch.from_numpy(np.random.default_rng(0).normal(-7, 2, 10_000))
    for wanted in (4e-3, 1e-2):
        shift = shift_to(log_odds, wanted)
        assert float(torch.sigmoid(log_odds + shift).mean()) == pytest.approx(wanted, rel=2e-3)
    assert shift_to(log_odds, 0.9) == LIMIT
    assert shift_to(log_odds, 1e-9) == -LIMIT


def test_of_a_fixed_probability_the_shift_is_the_difference_of_log_odds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the rollout goes."""
    monkeypatch.setattr(crossings, "N_STEPS", 6)
    monkeypatch.setattr(crossings, "FIRST", 2)
    model = ScoreDynamics.from_pretrained(CG)
    assert isinstance(model.denoiser, ConditionalDenoiser) and model.denoiser.sides is not None
    model.denoiser.sides.shift = (0.0, 0.0)
    share = 0.01
    with torch.no_grad():
        last = model.denoiser.sides.layers[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.fill_(math.log(share / (1 - share)))
    x = load_start(Path(zoo.__file__).parent / "data" / "alanine-dipeptide.pdb", model.molecule)
    one = torch.from_numpy(np.asarray(x).reshape(-1, model.molecule.n_sites, 3)[:1])
    other = model.sides.of(crossings._local(model.denoiser, one.double()))  # type: ignore[union-attr]
    with pytest.raises(ZooError, match=f"is on side {1 - int(other[0])} of the barrier"):
        fitted_shift(model.config, model.denoiser, one, (0.02, 0.99))
    monkeypatch.setattr(crossings, "_starts", lambda *_: np.repeat(one[:1].numpy().astype(np.float64), 64, 0))
    monkeypatch.setattr(Sides, "of", lambda self, x: torch.full((len(x),), self.wanted))
    found = []
    for side in (0, 1):
        monkeypatch.setattr(Sides, "wanted", side, raising=False)
        logits = crossings._logits(model.config, model.denoiser, one, side, 0)
        assert len(logits) == 4 * 64
        found.append(shift_to(logits if side == 0 else -logits, (0.02, 0.98)[side]))
    odds = [math.log(p / (1 - p)) for p in (0.01, 0.02, 0.98, 0.99)]
    assert found == pytest.approx([odds[1] - odds[0], odds[2] - odds[3]], abs=2e-3)


def test_a_shift_is_written_into_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CG, folder)
    before = ScoreDynamics.from_pretrained(folder)
    write_shift(folder, (0.1, 0.3), "a command")
    after = ScoreDynamics.from_pretrained(folder)
    assert after.sides is not None and after.sides.shift == (0.1, 0.3)
    assert after.weights_sha256 == before.weights_sha256
    sections = read_metrics(folder)["sections"]
    assert is_current(folder, sections["training"]) and sections["training"]["shift_by"] == "a command"
    assert not is_current(folder, sections["kinetics"])  # to be measured again
