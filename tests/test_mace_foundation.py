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
from zoo.backbones.mace_file import read_mace_file
from zoo.backbones.mace_foundation import config_like, start_from
from zoo.backbones.mace_network import MaceConfig, MaceNetwork
from zoo.denoiser import Denoiser, DenoiserConfig
from zoo.errors import CheckpointError
from zoo.graph import neighbor_graph
from zoo.mace_import import import_mace

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


@pytest.mark.slow
def test_a_models_file_is_read_as_numbers_and_parts(written: tuple[torch.nn.Module, Path]) -> None:
    model, path = written
    read = read_mace_file(path)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "_compiled" not in name:  # e3nn's generated code
            assert torch.equal(read.tensors[name], value), name
    theirs = {name for name, _ in model.named_modules() if "_compiled" not in name}
    assert theirs <= set(read.modules)
    assert read.kind == "ScaleShiftMACE"
    assert config_like(read, CUTOFF) == MaceConfig(
        cutoff=CUTOFF, n_channels=4, n_radial=5, n_layers=2, l_max=2, correlation=3, radial_width=8,
        radial_layers=3, envelope=5,
    )  # fmt: skip


@pytest.mark.slow
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
    contraction = "products.1.symmetric_contractions.contractions.1."
    assert sorted(left) == sorted(
        [
            *(f"{contraction}{name}" for name in ("weights_max", "weights.0", "weights.1")),
            "interactions.1.skip_tp.weight (vectors)", "products.1.linear.weight (vectors)",
            "read.0.weight", "read.0.bias", "read.2.weight", "read.2.bias", "out.weight",
        ]
    )  # fmt: skip
    with torch.no_grad():
        ours = network._features(graph, None, 50)
        told = network._features(graph, (0.05, 0.02), 50)  # of the noise, which changes nothing at first
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
    assert all(torch.equal(*each) for each in zip(ours, told, strict=True))


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


@pytest.mark.slow
def test_elements_are_averaged_and_unknown_ones_refused(written: tuple[torch.nn.Module, Path]) -> None:
    _, path = written
    read = read_mace_file(path)
    config = config_like(read, CUTOFF)
    embeds, network = [], MaceNetwork(config)
    for elements in ([13], [29], [13, 29]):
        start_from(network, read, elements)
        embeds.append(network.embed.detach().clone())
    torch.testing.assert_close((embeds[0] + embeds[1]) / 2, embeds[2])
    before = network.embed.detach().clone()
    with pytest.raises(CheckpointError, match="does not know O: name some of Al, Ni, Cu"):
        start_from(network, read, [8, 13])
    with pytest.raises(CheckpointError, match="does not know which elements"):
        start_from(network, read, [])
    assert torch.equal(network.embed, before)
    with pytest.raises(CheckpointError, match="not of the MACE model's architecture"):
        start_from(MaceNetwork(MaceConfig(n_channels=4, n_layers=1)), read, [13])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_irreps": "4x0e"}, "take a medium model"),
        ({"distance_transform": "Agnesi"}, "transforms distances"),
        ({"radial_MLP": [8, 4, 8]}, "differ in width"),
        ({"apply_cutoff": False}, "applies its cutoff after"),
        ({"num_polynomial_cutoff": 20}, "larger than a denoiser's network may be"),
        ({"radial_type": "gaussian"}, "no radial functions that are Bessel's"),
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
    torch.save(mace_model(max_ell=1, correlation=1, **changes), tmp_path / "other.model")
    with pytest.raises(CheckpointError, match=message):
        config_like(read_mace_file(tmp_path / "other.model"), CUTOFF)


class _Trap:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("trapped",))


def archive(path: Path, data: bytes, storages: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    """As PyTorch writes them."""
    with zipfile.ZipFile(path, "w", how) as out:
        out.writestr("archive/data.pkl", data)
        for key, numbers in storages.items():
            out.writestr(f"archive/data/{key}", numbers)
    return path


class _Named:
    """Pickles as a call of a function that is known by its name only."""

    def __init__(self, module: str, name: str, *arguments: Any, state: Any = None) -> None:
        self.what = (module, name, arguments, state)


class _Storage:
    """Pickles as a storage of float32."""


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj: Any) -> Any:
        kind = _Named("torch", "FloatStorage")
        return ("storage", kind, "0", "cpu", 2) if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, _Named):
            super().save(obj, save_persistent_id)
            return
        module, name, arguments, state = obj.what
        self.write(b"c" + f"{module}\n{name}\n".encode())
        if (module, name) != ("torch", "FloatStorage"):
            self.save(arguments)
            self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def pickled(modules: dict[str, Any], parameters: dict[str, Any]) -> bytes:
    state = {"_modules": modules, "_parameters": parameters}
    out = io.BytesIO()
    _Pickler(out, 2).dump(_Named("mace.modules", "MACE", state=state))
    return out.getvalue()


def tensor(size: Any, stride: Any, state: Any = None) -> _Named:
    arguments = (_Storage(), 0, size, stride, False, {})
    return _Named("torch._utils", "_rebuild_tensor_v2", *arguments, state=state)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(_Trap(), tmp_path / "trap.model")
    with pytest.raises(CheckpointError, match="holds no model"):
        read_mace_file(tmp_path / "trap.model")
    assert not (tmp_path / "trapped").exists()
    pickle.loads(pickle.dumps(_Trap()))  # the trap works, where pickles are trusted
    assert (tmp_path / "trapped").exists()


def test_a_written_file_gives_its_tensors_and_nothing_that_is_done_to_them(tmp_path: Path) -> None:
    """The state of a tensor would be given to PyTorch, which makes it longer than the file has numbers."""
    part = _Named("a", "Module", state={"_parameters": {"weight": tensor((2,), (1,), (1, 2, 3, 4))}})
    path = archive(tmp_path / "x.model", pickled({"part": part}, {}), {"0": np.float32([1, 2]).tobytes()})
    read = read_mace_file(path)
    assert list(read.tensors) == ["part.weight"]
    assert read.tensors["part.weight"].tolist() == [1.0, 2.0]
    assert (read.kind, read.modules["part"].kind) == ("MACE", "Module")


@pytest.mark.parametrize(
    ("size", "stride"), [((100000000,), (0,)), ((2**40,), (0,)), ((3,), (1,)), ((2,), (5,)), ((-1,), (1,))]
)
def test_tensors_of_numbers_that_are_not_there(size: Any, stride: Any, tmp_path: Path) -> None:
    part = _Named("a", "Module")
    data = pickled({"part": part}, {"weight": tensor(size, stride)})
    path = archive(tmp_path / "x.model", data, {"0": np.float32([1, 2]).tobytes()})
    with pytest.raises(CheckpointError, match=r"x\.model: (a tensor of shape|damaged)"):
        read_mace_file(path)


def test_modules_that_hold_one_another_and_bombs(tmp_path: Path) -> None:
    module: Any = _Named("a", "Module")
    for _ in range(18):  # two ways down from each: 2^18 modules
        module = _Named("a", "Module", state={"_modules": {"one": module, "two": module}})
    with pytest.raises(CheckpointError, match="hold one another"):
        read_mace_file(archive(tmp_path / "deep.model", pickled({"m": module}, {}), {}))
    data = pickled({"m": _Named("a", "Module")}, {"weight": tensor((2,), (1,))})
    bomb = archive(tmp_path / "bomb.model", data, {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="does not compress"):
        read_mace_file(bomb)


@pytest.mark.slow
def test_other_files_are_one_line(tmp_path: Path, written: tuple[torch.nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_mace_file(tmp_path / "none.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(CheckpointError, match="not a MACE model file"):
        read_mace_file(tmp_path / "text.model")
    torch.save(torch.zeros(3), tmp_path / "tensor.model")
    with pytest.raises(CheckpointError, match="holds no model, but _rebuild_tensor_v2"):
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
    with pytest.raises(CheckpointError, match="the model is a Linear, not one of MACE"):
        config_like(read, CUTOFF)


@pytest.mark.slow
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
        assert denoiser_binaries.main([*words, "--elements", "Ni"]) == 1
        assert "trained with other settings (mace_elements)" in capsys.readouterr().err
        assert denoiser_binaries.main(words[:4]) == 1
        assert "trained with other settings (mace_model, mace_elements)" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
    assert denoiser_binaries.main(words) == 1
    assert "--mace-model needs --elements" in capsys.readouterr().err
    denoiser = Denoiser.from_pretrained(out)
    assert (denoiser.name, denoiser.config.version) == ("denoiser-binaries-from-mace", "1.0.0")
    assert denoiser.config.architecture["radial_layers"] == 3
    assert "license: other" in denoiser.card and "licence applies to these weights" in denoiser.card
    command = denoiser.metrics["sections"]["training"]["command"]
    assert command.endswith("--seed 0 --mace-model small.model --elements Ni Cu")
    # One step of training has moved the model's weights a little, not drawn others.
    name = "interactions.0.linear_up.weight"
    started = dict(written[0].named_parameters())[name]
    torch.testing.assert_close(denoiser.network.get_parameter(name).detach(), started, atol=0.02, rtol=0)
    assert denoiser_binaries.main(["--elements", "Ni"]) == 1
    assert denoiser_binaries.main([*words, "--elements", "Xx"]) == 1
    assert "--elements: no element Xx" in capsys.readouterr().err
