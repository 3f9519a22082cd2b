"""Fields of configs: a default, a text for `--help` and errors, and whether the value makes the output."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def semantic(default: Any = MISSING, help: str = "") -> Any:
    """A dataclass field that makes the output: away from its default it enters the identity."""
    return _field(default, {"help": help})


def execution(default: Any = MISSING, help: str = "") -> Any:
    """A dataclass field that says how the work is done, or where, not what comes of it."""
    return _field(default, {"help": help, "execution": True})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
