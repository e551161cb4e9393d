"""Shared by all tests: one thread, no network, a small checkpoint to break in various ways."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small tensors are slower on many threads


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback may be connected to: a test that needs more is a test that fails somewhere."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def config() -> dict[str, Any]:
    """The part of a config that every kind of checkpoint has."""
    return {
        "kind": "denoiser",
        "name": "tiny",
        "version": "0.1.0",
        "units": {"length": "angstrom"},
    }


@pytest.fixture
def saved(tmp_path: Path, config: dict[str, Any]) -> Callable[..., Path]:
    """Writes a checkpoint of two tensors, by default to `tmp_path / "tiny"`."""
    import torch

    from zoo.checkpoint import save

    def write(name: str = "tiny", /, fill: float = 1.0, **changes: Any) -> Path:
        weights = {"layer.weight": torch.full((2, 3), fill), "layer.bias": torch.zeros(2)}
        return save(
            tmp_path / name, {**config, **changes}, weights, metrics={"sections": {}}, card="# tiny\n"
        )

    return write


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no relative path of the test can hit the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
