"""The statistics file, as rules of a selection read it: edges of shares and bins, values that several rows have."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.published import Published

VERSION = 1
PARTS = ("made_of", "fields", "top", "bins", "uniform", "shared")


@dataclass(frozen=True)
class Top:
    """The edge of the largest share. above, at: rows whose value is larger, or equal."""

    edge: float
    above: int
    at: int


@dataclass(frozen=True)
class Shared:
    """Values that too many rows have. values: their digests, int64 ascending. first: place of each one's first row,
    int64. rows: how many rows have any of them."""

    values: np.ndarray
    first: np.ndarray
    rows: int


def made_of(published: Published) -> dict[str, Any]:
    """The facts about a run that its statistics file holds, by which the file is refused for another run."""
    return {"column": published.column, "identity": published.identity, "shards": shards_digest(published.shards)}


def shards_digest(shards: Iterable[Shard]) -> str:
    """sha256 of the shards' ids, sizes and versions."""
    rows = sorted(f"{shard.id} {shard.bytes} {shard.etag}" for shard in shards)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def packed(values: np.ndarray) -> str:
    """int64 values as base64."""
    return base64.b64encode(values.astype("<i8").tobytes()).decode()


def shared_name(most: int, distance: int) -> str:
    """The key of an entry: values that more than `most` rows have, where hashes within `distance` bits are equal.

    >>> shared_name(10, 0), shared_name(1, 4)
    ('10', '1:4')
    """
    return f"{most}:{distance}" if distance else str(most)


class Statistics:
    """An opened statistics file.

    Raises:
        UserError: the file is not a statistics file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            content = Path(path).read_bytes()
            self._made: dict[str, Any] = json.loads(content)
            if self._made["version"] != VERSION:
                raise ValueError(f"version {self._made['version']}, expected {VERSION}")
            if odd := [name for name in PARTS if not isinstance(self._made.get(name), dict)]:
                raise ValueError(f"{odd[0]} is not in it")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"select: {path} is no statistics file ({error}). Make it: python -m recap.select.statistics RUN "
                f"--out {path}"
            ) from error
        self.digest = hashlib.sha256(content).hexdigest()

    def check(self, name: str, run: str, published: Published) -> None:
        """UserError unless the file was made from this run as it is now. name: the column that reads the run."""
        stored = self._made["made_of"]
        if stored != made_of(published):
            what = "another identity" if stored.get("identity") != published.identity else "other shards"
            raise UserError(
                f"select: {self.path} is of {what} than {run}, which column {name} reads. Make it again: python -m "
                f"recap.select.statistics {run} --out {self.path} ..."
            )

    def top(self, field: str, share: float) -> Top:
        return Top(**self._entry("top", field, repr(share), f"--top {field}={share}"))

    def edges(self, field: str, bins: int, uniform: bool) -> list[float]:
        kind = "uniform" if uniform else "bins"
        return self._entry(kind, field, str(bins), f"--{kind} {field}={bins}")

    def shared(self, field: str, most: int, distance: int) -> Shared:
        name = shared_name(most, distance)
        found = self._entry("shared", field, name, f"--shared {field}={name}")
        values, first = (np.frombuffer(base64.b64decode(found[name]), "<i8") for name in ("values", "first"))
        return Shared(values, first, found["rows"])

    def _entry(self, kind: str, field: str, what: str, flag: str) -> Any:
        found = self._made[kind].get(field, {}).get(what)
        if found is None:
            there = [f"--{k} {f}={w}" for k in ("top", "bins", "uniform", "shared") for f in self._made[k] for w in
                     self._made[k][f]]  # fmt: skip
            raise UserError(f"select: {self.path} has no {flag}; it has {', '.join(there)}. Make it again with {flag}.")
        return found
