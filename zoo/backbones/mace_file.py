"""What a MACE model's own file holds, read without running anything in it.

Such a file (``2023-12-03-mace-128-L1_epoch-199.model`` and the like, or what ``mace_run_train`` writes) is a
whole pickled module: to load it the usual way is to run whatever code its pickle names.  Here nothing that it
names is imported or called: every object of the pickle becomes a `Part`, which only remembers the name of its
class and its content.  Tensors are put together afterwards, from the raw numbers in the archive.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_DEEPEST, _MOST = 50, 20000  # modules within modules, and in all
# Functions of PyTorch that a pickle calls for a tensor, and for a parameter around one.
_TENSOR = "_rebuild_tensor_v2"
_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")


class Part:
    """A pickled object of any class, or the call of any function.

    Attributes
    ----------
    kind : the name of the class or function.
    arguments : what it was called with.
    state : its attributes by name.
    """

    kind = ""
    arguments: tuple[Any, ...]
    state: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        part = super().__new__(cls)
        part.arguments, part.state = args, {}
        return part

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    # What else a pickle may do to an object while it fills it.
    def __call__(self, *args: Any, **kwargs: Any) -> Part:
        return Part()

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.kind == "OrderedDict":
            self.state[key] = value

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class MaceFile:
    """A model's modules and tensors.

    Attributes
    ----------
    kind : the name of the model's class.
    tensors : parameters and buffers by the names of a state dict.
    modules : all of its modules by their path, as in ``interactions.0``.
    """

    def __init__(self, model: Part, storages: _Storages) -> None:
        self.kind = model.kind
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, Part] = {}
        self._take(model, "", storages, set())

    def attribute(self, module: str, name: str) -> Any:
        """Of a module; None where it has no such attribute."""
        part = self.modules.get(module)
        return None if part is None else part.state.get(name)

    def _take(self, part: Part, path: str, storages: _Storages, above: set[int]) -> None:
        if id(part) in above or len(above) > _DEEPEST or len(self.modules) > _MOST or path in self.modules:
            raise CheckpointError("modules of the model hold one another")
        self.modules[path] = part
        prefix = f"{path}." if path else ""
        for key in ("_parameters", "_buffers"):
            for name, value in _dict(part, key).items():
                tensor = storages.tensor(value)
                if tensor is not None:
                    self.tensors[f"{prefix}{name}"] = tensor
        for name, module in _dict(part, "_modules").items():
            if isinstance(module, Part):
                self._take(module, f"{prefix}{name}", storages, above | {id(part)})


def read_mace_file(path: str | Path) -> MaceFile:
    """The model in a file.

    Raises
    ------
    CheckpointError : it cannot be read, or is no model that PyTorch pickled whole.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            index = next((n for n in names if n.endswith("/data.pkl")), None)
            if index is None or f"{index.removesuffix('data.pkl')}constants.pkl" in names:
                raise CheckpointError("not a pickled MACE model, but some other archive")
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise CheckpointError("not written by PyTorch, which does not compress")
            storages = _Storages(archive, index.removesuffix("data.pkl"))
            with archive.open(index) as file:
                model = _Reader(file).load()
            if not isinstance(model, Part) or "_modules" not in model.state:
                raise CheckpointError(f"holds no model, but {getattr(model, 'kind', type(model).__name__)}")
            return MaceFile(model, storages)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{path}: not a MACE model file; those that PyTorch writes since 1.6 are zip archives"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # the bytes of a stranger: whatever a reader of pickles trips over
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: damaged, or not a pickled MACE model ({reason})") from None


class _Storage(Part):
    """The raw numbers of tensors, by their key in the archive."""


class _Reader(pickle._Unpickler):
    """Calls nothing that the pickle names; in Python, where memory cannot be claimed by an opcode alone."""

    def find_class(self, module: str, name: str) -> Any:
        return _part(name)

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        storage = _Storage()
        storage.state.update(kind=getattr(kind, "kind", ""), key=str(key))
        return storage


@cache
def _part(name: str) -> type[Part]:
    return type(name, (Part,), {"kind": name})


class _Storages:
    """Tensors from what the pickle says of them."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._read: dict[str, Tensor] = {}

    def tensor(self, value: Any) -> Tensor | None:
        """None for what is no tensor.

        Raises
        ------
        CheckpointError : it is one of an unknown type, or of more numbers than are there.
        """
        while isinstance(value, Part) and value.kind in _PARAMETER:
            value = value.arguments[0]
        if not isinstance(value, Part) or value.kind != _TENSOR:
            return None
        storage, offset, size, stride = value.arguments[:4]
        numbers = self._numbers(storage)
        if math.prod(size) > numbers.numel():
            raise CheckpointError(f"a tensor of shape {tuple(size)} has {numbers.numel()} numbers")
        return numbers.as_strided(tuple(size), tuple(stride), offset).clone()

    def _numbers(self, storage: Any) -> Tensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError("a tensor has no numbers")
        kind, key = storage.state["kind"], storage.state["key"]
        if kind not in _DTYPES:
            raise CheckpointError(f"tensors of type {kind.removesuffix('Storage')} are not known here")
        if key not in self._read:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            dtype = _DTYPES[kind]
            self._read[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._read[key]


def _dict(part: Part, key: str) -> dict[str, Any]:
    """An attribute that is a dict or an OrderedDict, of the keys that are names."""
    found = part.state.get(key)
    if isinstance(found, Part) and found.kind == "OrderedDict":
        found = found.state
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(name, str)}
