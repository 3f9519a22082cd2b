"""A checked config, and the identity of what it makes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from hpc.config.schema import RunConfig
from hpc.operator import Operator
from hpc.trainer import Trainer


@dataclass
class Config:
    """A checked config. `resolved` holds every key with its value, as written into submissions."""

    source: str  # the file, for messages
    run: RunConfig
    work: Any  # the work's own keys: an instance of `work_class.Config`
    work_class: Any  # the class of the Operator or Trainer that the config names
    resolved: dict[str, Any]
    overrides: list[str] = field(default_factory=list)  # as typed

    @property
    def directory(self) -> Path:
        return directory_of(self.run)

    @property
    def is_gang(self) -> bool:
        return bool(self.run.trainer)

    def operator(self) -> Operator:
        """A map job's operator."""
        return self.work_class(self.work)

    def trainer(self) -> Trainer:
        """A gang job's trainer."""
        return self.work_class(self.work)

    def apply_umask(self) -> None:
        """Make this process' files as readable as the run wants them; children inherit it."""
        if self.run.umask is not None:
            os.umask(int(self.run.umask, 8))

    def semantic(self) -> dict[str, Any]:
        """The keys and values that make the output; fields at their default are left out."""
        kind = "trainer" if self.is_gang else "operator"
        return {kind: getattr(self.run, kind), **_semantic(self.work)}


def identity(config: Config, work: Operator | Trainer, version: int | None = None) -> str:
    """Hash (8 hex digits) of what makes the output; equal for equal output, whatever the machine or the path.

    Fields at their default are left out, so that a field that is added later changes no hash. version: the work's own.
    """
    version = type(work).version if version is None else version
    content = {"config": config.semantic(), "version": version, "made_with": work.identity()}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def directory_of(run: RunConfig) -> Path:
    """The run directory."""
    return Path(run.runs).expanduser().absolute() / run.name


def _semantic(config: Any) -> dict[str, Any]:
    """Fields that differ from their default and are not of the execution kind, nested dataclasses included."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("execution"):
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if inner := _semantic(value):
                out[f.name] = inner
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            out[f.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    """A value as it enters the identity; dataclasses inside lists and mappings by what differs from their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _semantic(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
