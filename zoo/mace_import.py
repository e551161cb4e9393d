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

_FLAG = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def import_mace(module: str = "mace") -> ModuleType:
    """A module of MACE; the environment is left as it was found.  The first one takes seconds.

    Raises
    ------
    MissingExtraError : MACE is not installed.
    """
    import torch

    before = os.environ.get(_FLAG)
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
        if before is None:
            os.environ.pop(_FLAG, None)
        else:
            os.environ[_FLAG] = before
