"""What is tried: the keys of a job's config that vary, each with its values, and the config of each point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.config import Config, tuned
from hpc.operator import KnowsItsGpus
from recap.engine.tuning.search import Axes, Point

MOST_POINTS = 2000
_EXAMPLE = "Write --grid captioner.slots=64,128,256"


@dataclass(frozen=True)
class Grid:
    """values: of each key, numbers in rising order."""

    values: dict[str, list[Any]]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> Grid:
        """UserError for what is no grid."""
        found: dict[str, list[Any]] = {}
        for key, given in values.items():
            if not isinstance(given, list) or not given:
                raise UserError(f"tune: grid: `{key}`: {given!r} is no list of values. {_EXAMPLE}")
            one_each = [value for at, value in enumerate(given) if not any(_same(value, other) for other in given[:at])]
            found[str(key)] = sorted(one_each) if _is_ordered(one_each) else one_each
        if not found:
            raise UserError(f"tune: grid: nothing varies. {_EXAMPLE}")
        grid = cls(found)
        if (count := len(grid)) > MOST_POINTS:
            raise UserError(f"tune: grid: {count:,} points are more than {MOST_POINTS:,}. Leave values out.")
        return grid

    def __len__(self) -> int:
        count = 1
        for values in self.values.values():
            count *= len(values)
        return count

    @property
    def axes(self) -> Axes:
        lists = self.values.values()
        return Axes(tuple(map(len, lists)), tuple(_is_ordered(values) for values in lists))

    def changes(self, point: Point) -> dict[str, Any]:
        """The keys of a point with their values."""
        return {key: values[at] for (key, values), at in zip(self.values.items(), point, strict=True)}

    def point(self, changes: Mapping[str, Any]) -> Point | None:
        """Where these values are in the grid; None where they are not of it."""
        if changes.keys() != self.values.keys():
            return None
        found = [next((at for at, v in enumerate(vs) if _same(v, changes[k])), -1) for k, vs in self.values.items()]
        return None if -1 in found else tuple(found)

    def start(self, job: Config) -> Point:
        """The point nearest to the job as it is: its own values, where the grid has them, else the middle ones."""
        found = []
        for key, values in self.values.items():
            now = _at(job.resolved, key)
            found.append(next((at for at, value in enumerate(values) if _same(value, now)), (len(values) - 1) // 2))
        return tuple(found)


def parsed(texts: Sequence[str]) -> dict[str, list[Any]]:
    """A grid from texts of a command line: KEY=V,V,... each, or a file with such keys (YAML: KEY: [V, V])."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, given = text.partition("=")
        if not equals:
            found |= configs.read(Path(text))
        elif given.startswith("["):
            found |= configs.parsed([text])
        else:
            found |= configs.parsed([f"{key}=[{given}]"])
    return found


def config_of(job: Config, changes: Mapping[str, Any]) -> Config:
    """The job's config at a point. UserError where it is refused, as a launch would."""
    config = configs.changed(job, dict(changes), "tune")
    operator = config.operator()
    gpus, why = config.run.cluster.gpus_per_engine, operator.one_gpu() if isinstance(operator, KnowsItsGpus) else ""
    if gpus > 1 and why:
        raise UserError(f"config: `cluster.gpus_per_engine`: {gpus}, and {why}")
    return config


def name_of(config: Config) -> str:
    """A digest of all that a trial's rate depends on: a trial is known by it."""
    content = [tuned.settings(config), config.resolved.get("data")]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def shown(value: Any) -> str:
    """A value as a command line has it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


def _same(one: Any, other: Any) -> bool:
    return (type(one) is type(other) and bool(one == other)) or (_is_number(one) and _is_number(other) and one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_ordered(values: Sequence[Any]) -> bool:
    return all(map(_is_number, values))


def _at(tree: Any, dotted: str) -> Any:
    """The value at `a.b` of a tree, None where there is none."""
    for key in dotted.split("."):
        if isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict):
            tree = tree.get(key)
        else:
            return None
    return tree
