"""A denoiser's network that starts from a MACE model's own file, and that nothing in such a file is run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
import torch

from training import denoiser_binaries
from zoo.backbones.mace_file import Part, read_mace_file
from zoo.backbones.mace_foundation import config_like, start_from
from zoo.backbones.mace_network import MaceConfig, MaceNetwork
from zoo.denoiser import Denoiser, DenoiserConfig
from zoo.errors import CheckpointError
from zoo.graph import neighbor_graph
from zoo.mace_import import import_mace

pytestmark = pytest.mark.slow
R_MAX, CUTOFF = 4.0, 1.65


def mace_model(**changes: Any) -> torch.nn.Module:
    """As foundation models are, only small."""
    modules = import_mace("mace.modules")
    o3 = import_mace("e3nn.o3")
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    torch.manual_seed(5)
    given = {
        "r_max": R_MAX, "num_bessel": 5, "num_polynomial_cutoff": 5, "max_ell": 2,
        "interaction_cls": block, "interaction_cls_first": block, "num_interactions": 2, "num_elements": 3,
        "hidden_irreps": o3.Irreps("4x0e + 4x1o"), "MLP_irreps": o3.Irreps("8x0e"),
        "atomic_energies": np.zeros(3), "avg_num_neighbors": 21.5, "atomic_numbers": [13, 28, 29],
        "correlation": 3, "gate": torch.nn.functional.silu, "radial_MLP": [8, 8, 8],
        "atomic_inter_scale": 1.0, "atomic_inter_shift": 0.0,
    }  # fmt: skip
    return modules.ScaleShiftMACE(**{**given, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    model = mace_model()
    path = tmp_path_factory.mktemp("mace") / "small.model"
    torch.save(model, path)
    return model, path


def test_a_models_file_is_read_as_numbers_and_parts(written: tuple[torch.nn.Module, Path]) -> None:
    model, path = written
    read = read_mace_file(path)
    known = dict(read.tensors())
    for name, parameter in model.named_parameters():
        assert torch.equal(known[name], parameter), name
    assert read.kind == "ScaleShiftMACE"
    assert config_like(read, CUTOFF) == MaceConfig(
        cutoff=CUTOFF, n_channels=4, n_radial=5, n_layers=2, l_max=2, correlation=3, radial_width=8,
        radial_layers=3, envelope=5,
    )  # fmt: skip


def test_scalars_of_one_element_are_those_of_the_model(written: tuple[torch.nn.Module, Path]) -> None:
    """In the model's own forward pass, in Å, on a rattled crystal; the network sees it in its own unit."""
    model, path = written
    atoms = ase.build.bulk("Ni", cubic=True) * (3, 3, 3)
    atoms.rattle(0.1, seed=1)
    unit = R_MAX / CUTOFF
    graph = neighbor_graph(atoms.positions / unit, atoms.cell[:] / unit, True, CUTOFF)
    read = read_mace_file(path)
    network = MaceNetwork(config_like(read, CUTOFF))
    left = start_from(network, read, elements=[28])
    assert all(
        name.startswith(("embed_context", "read.", "out.", "products.1.")) or name.endswith("(vectors)")
        for name in left
    )
    with torch.no_grad():
        network.embed_context.weight.zero_()
        ours = network._features(graph, None, 50)
        data = import_mace("mace.data")
        keyspec = data.KeySpecification()
        config = data.config_from_atoms(atoms, key_specification=keyspec)
        z_table = import_mace("mace.tools").AtomicNumberTable([13, 28, 29])
        one = data.AtomicData.from_config(config, z_table=z_table, cutoff=R_MAX)
        batch = next(
            iter(import_mace("mace.tools").torch_geometric.dataloader.DataLoader([one], batch_size=1))
        )
    theirs = model(batch.to_dict(), compute_force=False)["node_feats"].detach()
    # All of the first layer, then the scalars of the last.
    torch.testing.assert_close(ours[0], theirs[:, :16], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1][:, :4], theirs[:, 16:], atol=1e-4, rtol=1e-4)
    assert theirs[:, 16:].std() > 0.01


def test_configs_from_before_these_architectures_mean_what_they_meant() -> None:
    """What came later is left out at its default, and not asked for."""
    old = Denoiser.from_pretrained("denoiser-binaries")
    assert not MaceConfig.LATER & set(old.config.architecture)
    assert MaceConfig(**old.config.architecture).to_dict() == old.config.architecture
    assert MaceConfig(envelope=5).to_dict()["envelope"] == 5
    lacking = {k: v for k, v in old.config.to_dict().items() if k != "architecture"}
    lacking["architecture"] = {k: v for k, v in old.config.architecture.items() if k != "n_radial"}
    with pytest.raises(CheckpointError, match="architecture lacks n_radial;"):
        DenoiserConfig.from_dict(lacking)


def test_elements_are_averaged_and_unknown_ones_refused(written: tuple[torch.nn.Module, Path]) -> None:
    _, path = written
    read = read_mace_file(path)
    config = config_like(read, CUTOFF)
    embeds, network = [], MaceNetwork(config)
    for elements in ([13], [29], [13, 29]):
        start_from(network, read, elements)
        embeds.append(network.embed.detach().clone())
    torch.testing.assert_close((embeds[0] + embeds[1]) / 2, embeds[2])
    with pytest.raises(CheckpointError, match=r"does not know the elements with atomic numbers \[8\]"):
        start_from(network, read, [8, 13])
    with pytest.raises(CheckpointError, match="not of the MACE model's architecture"):
        start_from(MaceNetwork(MaceConfig(n_channels=4, n_layers=1)), read)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_irreps": "4x0e"}, "take a medium model"),
        ({"distance_transform": "Agnesi"}, "transforms its distances"),
        ({"radial_MLP": [8, 4]}, "differ in width"),
        (
            {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"},
            "layer 2 of the MACE model is a",
        ),
    ],
)
def test_models_that_do_not_fit_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "hidden_irreps" in changes:
        changes = {"hidden_irreps": import_mace("e3nn.o3").Irreps(changes["hidden_irreps"])}
    if "interaction_cls" in changes:
        classes = import_mace("mace.modules").interaction_classes
        changes = {"interaction_cls": classes[changes["interaction_cls"]]}
    if "radial_MLP" in changes:
        changes = {"radial_MLP": [8, 4, 8]}
    torch.save(mace_model(max_ell=1, correlation=1, **changes), tmp_path / "other.model")
    with pytest.raises(CheckpointError, match=message):
        config_like(read_mace_file(tmp_path / "other.model"), CUTOFF)


class _Trap:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("trapped",))


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(_Trap(), tmp_path / "trap.model")
    with pytest.raises(CheckpointError, match="holds no model"):
        read_mace_file(tmp_path / "trap.model")
    assert not (tmp_path / "trapped").exists()
    pickle.loads(pickle.dumps(_Trap()))  # the trap works, where pickles are trusted
    assert (tmp_path / "trapped").exists()


def test_other_files_are_one_line(tmp_path: Path, written: tuple[torch.nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_mace_file(tmp_path / "none.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(CheckpointError, match="not a MACE model file"):
        read_mace_file(tmp_path / "text.model")
    torch.save(torch.zeros(3), tmp_path / "tensor.model")
    with pytest.raises(CheckpointError, match="holds no model, but Tensor"):
        read_mace_file(tmp_path / "tensor.model")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.model")
    with pytest.raises(CheckpointError, match="some other archive"):
        read_mace_file(tmp_path / "script.model")
    whole = zipfile.ZipFile(written[1])
    with zipfile.ZipFile(tmp_path / "cut.model", "w") as cut:
        for name in whole.namelist():
            if not name.endswith("/data/3"):
                cut.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match="damaged"):
        read_mace_file(tmp_path / "cut.model")
    other = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), other)
    (tmp_path / "linear.model").write_bytes(other.getvalue())
    read = read_mace_file(tmp_path / "linear.model")
    assert isinstance(read, Part)
    with pytest.raises(CheckpointError, match="the model is a Linear, not one of MACE"):
        config_like(read, CUTOFF)


def test_a_recipe_starts_from_a_model(
    tmp_path: Path,
    written: tuple[torch.nn.Module, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = replace(denoiser_binaries.RECIPE, data=replace(denoiser_binaries.RECIPE.data, atoms_per_batch=64))
    monkeypatch.setattr(denoiser_binaries, "RECIPE", small)
    out, threads = tmp_path / "out", torch.get_num_threads()
    words = ["--steps", "1", "--out", str(out), "--mace-model", str(written[1])]
    try:
        assert denoiser_binaries.main([*words, "--elements", "Ni", "Cu"]) == 0
        assert denoiser_binaries.main(words) == 1
    finally:
        torch.set_num_threads(threads)
    assert "trained with other settings (mace_elements)" in capsys.readouterr().err
    denoiser = Denoiser.from_pretrained(out)
    assert denoiser.config.architecture["radial_layers"] == 3
    command = denoiser.metrics["sections"]["training"]["command"]
    assert command.endswith("--seed 0 --mace-model small.model --elements Ni Cu")
    # One step of training has moved the model's weights a little, not drawn others.
    name = "interactions.0.linear_up.weight"
    started = dict(written[0].named_parameters())[name]
    torch.testing.assert_close(denoiser.network.get_parameter(name).detach(), started, atol=0.02, rtol=0)
    assert denoiser_binaries.main(["--elements", "Ni"]) == 1
    assert denoiser_binaries.main([*words, "--elements", "Xx"]) == 1
    assert "--elements: no element Xx" in capsys.readouterr().err
