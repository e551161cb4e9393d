"""What a MACE model's own file holds, read without running anything in it.

Such a file (``2023-12-03-mace-128-L1_epoch-199.model`` and the like, or what ``mace_run_train`` writes) is a
whole pickled module: to load it the usual way is to run whatever code its pickle names.  Here nothing that it
names is imported or called.  Tensors are put together from the raw numbers in the archive, and everything
else (modules, irreps, generated code) becomes a `Part`, which only remembers its name and its content.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from zoo.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class Part:
    """A pickled object of any class: ``kind`` is the name of its class, ``state`` its attributes by name."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    # What else a pickle may do to an object while it fills it; nothing of this is wanted.
    def __call__(self, *args: Any, **kwargs: Any) -> Part:
        return Part()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    def child(self, path: str) -> Part | None:
        """The submodule at a path as in ``interactions.0``, or None."""
        part: Any = self
        for name in path.split("."):
            part = _of(part, "_modules").get(name)
        return part if isinstance(part, Part) else None

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of this module and all below it, by the names of a state dict."""
        for key in ("_parameters", "_buffers"):
            for name, value in _of(self, key).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
        for name, module in _of(self, "_modules").items():
            if isinstance(module, Part):
                yield from module.tensors(f"{prefix}{name}.")


def read_mace_file(path: str | Path) -> Part:
    """The model in a file, as parts and tensors.

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
                raise CheckpointError(f"{path}: not a pickled MACE model, but some other archive")
            with archive.open(index) as file:
                model = _Reader(file, archive, index.removesuffix("data.pkl")).load()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path}: not a MACE model file (PyTorch's are zip archives)") from None
    except CheckpointError:
        raise
    except Exception as error:  # the bytes of a stranger: whatever a reader of pickles trips over
        raise CheckpointError(f"{path}: damaged, or not a pickled MACE model ({error})") from None
    if not isinstance(model, Part) or "_modules" not in model.state:
        raise CheckpointError(f"{path}: holds no model, but {getattr(model, 'kind', type(model).__name__)}")
    return model


class _Reader(pickle.Unpickler):
    """Calls nothing that the pickle names: neither imports nor functions, nor classes of anybody."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        return type(name, (Part,), {"kind": name})

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, *_ = pid
        dtype = _DTYPES.get(getattr(kind, "kind", ""))
        if dtype is None:
            return None  # of a tensor that nobody needs
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor | None, offset: int, size: Any, stride: Any, *_: Any) -> Tensor | None:
    return None if storage is None else storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


def _of(part: Any, key: str) -> dict[str, Any]:
    found = part.state.get(key) if isinstance(part, Part) else None
    return found if isinstance(found, dict) else {}
