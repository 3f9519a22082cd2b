"""The trials of a tuning: a file each in its run directory, so that what has ended is never done again.

trials/<name>.json         a trial that has ended, by the digest of its settings, see hpc.config.tuned
trials/<name>.claim        which shard of the run measures it, or has
trials/<name>/             what its engines said
trials/sample.json         the shards that samples are taken from, and how large the whole plan is
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.base.errors import UserError
from hpc.config import Config
from hpc.operator import Shard
from recap.engine.tuning import grid as grids
from recap.engine.tuning.grid import Grid
from recap.engine.tuning.search import Point, next_point

MOST_SHARDS = 16  # that samples are taken from, evenly spaced over the plan


class Trials:
    """Those of one grid of one job."""

    def __init__(self, folder: Path, job: Config, grid: Grid) -> None:
        self.folder, self.job, self.grid = folder, job, grid
        self.configs: dict[Point, Config] = {}
        self.refused: dict[Point, str] = {}
        for point in grid.axes.points():
            try:
                self.configs[point] = grids.config_of(job, grid.changes(point))
            except UserError as error:
                self.refused[point] = str(error)
        self.names = {point: grids.name_of(config) for point, config in self.configs.items()}

    def digest(self) -> str:
        """Of all that can be tried."""
        return hashlib.sha256(" ".join(sorted(self.names.values())).encode()).hexdigest()[:8]

    def ended(self) -> dict[Point, dict[str, Any]]:
        """Records of the trials that have ended."""
        found = {}
        for point, name in self.names.items():
            file = self.folder / f"{name}.json"
            if file.exists():
                found[point] = json.loads(file.read_bytes())
        return found

    def claim(self, shard: str, most: int) -> Point:
        """The point that a shard's trial is to measure: the one that it was cut off at, or the next of the search.

        Raises:
            LookupError: as many as may be have ended or are at work, or no point is left.
        """
        while True:
            ended = self.ended()
            claims = {point: claim for point in self.names if (claim := self._claimed(point)) and point not in ended}
            if mine := [point for point, claim in claims.items() if claim == shard]:
                return mine[0]
            if len(ended) + len(claims) >= most:
                raise LookupError("the search has had its trials")
            known = {point: record["rate"] or None for point, record in ended.items()}
            leave = [*self.refused, *claims]
            point = next_point(self.grid.axes, known, leave, self.grid.start(self.job))
            if atomic.create(self._claim(point), shard.encode()):
                return point

    def write(self, point: Point, record: dict[str, Any]) -> None:
        atomic.replace(self.folder / f"{self.names[point]}.json", atomic.as_json(record, indent=1), durable=True)

    def logs(self, point: Point) -> Path:
        return self.folder / self.names[point]

    def _claim(self, point: Point) -> Path:
        return self.folder / f"{self.names[point]}.claim"

    def _claimed(self, point: Point) -> str:
        file = self._claim(point)
        return file.read_text() if file.exists() else ""


def write_sample(folder: Path, shards: Sequence[Shard]) -> None:
    """Keep which shards samples are taken from, and the size of the whole."""
    count = min(MOST_SHARDS, len(shards))
    chosen = [shards[number * len(shards) // count] for number in range(count)]
    known = [shard.expected for shard in shards if shard.expected is not None]
    record = {
        "shards": [asdict(shard) for shard in chosen],
        # Shards of which it is not known count as the mean of the others.
        "samples": round(sum(known) / len(known) * len(shards)) if known else None,
        "bytes": sum(shard.bytes for shard in shards),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic.replace(folder / "sample.json", atomic.as_json(record, indent=1), durable=True)


def read_sample(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "sample.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"tune: {folder / 'sample.json'}: {error}. Launch the tuning again.") from error
    return found
