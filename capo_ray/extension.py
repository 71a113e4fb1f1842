"""What users bring in files of their own: `module:name` in the configuration, in place of a name that is known here.

The module must be importable where the run is started, and in its actors: a file in the folder that the run starts
from is. Leaves out what an object must be able to do (who asks for it says so).
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Callable
from typing import Any


class NotLoaded(ValueError):
    """What a `module:name` stands for cannot be had; the message says why."""


_NAME = re.compile(r"[\w.]+:\w+")


def is_own(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def load(name: str, fits: Callable[[Any], bool], *, is_a: str) -> Any:
    """The object that `name` stands for, if it `fits`; `is_a` says in words what is wanted. Raises NotLoaded."""
    module, _, attribute = name.partition(":")
    try:
        home = importlib.import_module(module)
    except ImportError as error:
        raise NotLoaded(
            f"{name}: cannot import {module} ({error}); put {module}.py into the folder that the run starts from, or "
            "install its package"
        ) from None
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise NotLoaded(f"{name}: {type(error).__name__}: {error} ({line.filename}, line {line.lineno})") from error
    if not hasattr(home, attribute):
        raise NotLoaded(f"{name}: {module} has no {attribute}")
    found = getattr(home, attribute)
    if not fits(found):
        raise NotLoaded(f"{name}: must be {is_a}, and is a {type(found).__name__}")
    return found
