"""Parts of the package that this version may not have."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str) -> Any:
    """The module of that name; None where there is none."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
