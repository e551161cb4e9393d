"""MACE without its side effects: it turns torch's protection against pickles off for the whole process.

``import mace`` sets TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, because the e3nn that it pins reads constants with a
slice in them.  Allowing the slice for as long as the import takes does as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from importlib import import_module
from types import ModuleType

from zoo.errors import MissingExtraError

#: MACE's own, and what torch writes down when its compiler, which MACE asks for, is imported.
_FLAGS = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCHINDUCTOR_CACHE_DIR")


def import_mace(module: str = "mace") -> ModuleType:
    """A module of MACE; the environment is left as it was found.  The first one takes seconds.

    Raises
    ------
    MissingExtraError : MACE is not installed.
    """
    import torch

    before = {flag: os.environ.get(flag) for flag in _FLAGS}
    try:
        # Of parts of MACE that nobody here asks for; one line of it goes to standard output.
        with (
            torch.serialization.safe_globals([slice]),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("mace", "e3nn"):
            raise
        raise MissingExtraError('MACE is not installed: pip install "score-zoo[mace]"') from None
    finally:
        for flag, value in before.items():
            if value is None:
                os.environ.pop(flag, None)
            else:
                os.environ[flag] = value
