"""Classes and functions that a config names by dotted path."""

from __future__ import annotations

import importlib
from typing import Any

from hpc.base.errors import UserError


def load(path: str, key: str, example: str = "") -> Any:
    """What a dotted path names. Raises UserError that names the config's `key` where it does not import."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        what = f" Write the dotted path of a class, such as {example}." if example else ""
        raise UserError(f"{key}: {path!r} does not import ({error}).{what}") from error
