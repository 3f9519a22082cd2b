"""Tuning as a map job: its shards are the trials, so that it runs here or as a Slurm array, goes on after a kill, and
is watched as every job. Each engine of it has a whole node, and starts the engines of the job that is tuned.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.base.fields import execution
from hpc.config import tuned
from hpc.operator import OK, SKIPPED, Batched, Column, Damage, Item, MissingShards, Operator, Row, Shard
from recap.engine.tuning.failures import REFUSED
from recap.engine.tuning.grid import Grid
from recap.engine.tuning.search import Point
from recap.engine.tuning.trial import SETTLING_S, Outcome, Trial
from recap.engine.tuning.trials import Trials, read_sample, write_sample

FIELDS: list[tuple[str, pa.DataType]] = [
    ("settings", pa.string()), ("outcome", pa.string()), ("why", pa.string()), ("rate", pa.float64()),
    ("tokens_per_s", pa.float64()),
]  # fmt: skip


@dataclass
class TuneConfig:
    """Config keys of a tuning (python -m recap.engine.tune)."""

    job: dict[str, Any] = execution(
        {},
        "the job that is tuned: {config: FILE, set: {captioner.model: ...}}; recap.engine.tune puts its keys here",
    )
    source: list[str] = execution([], "that job as a command line names it, for the command that is shown in the end")
    grid: dict[str, Any] = execution({}, "keys of the job's config that vary -> list of values")
    trials: int = execution(12, "trials at most; each measures one point of the grid")
    seconds: float = execution(60.0, "seconds that a trial measures, after its engines are ready")
    samples: int = execution(4000, "samples that an engine takes at most in a trial")
    column: str = execution("trial", "name of the column that is made")


class TuneOperator(Batched):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = TuneConfig
    version: ClassVar[int] = 1
    batch_size = 1

    def __init__(self, config: TuneConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("trials", "samples", "seconds"):
            if getattr(config, name) <= 0:
                raise UserError(f"config: `{name}`: {getattr(config, name)} is not above 0.")
        self._folder, self._said = Path(), list[tuple[str, str]]()
        self._inner: Operator | None = None
        self._planned: list[Shard] = []

    @cached_property
    def job(self) -> configs.Config:
        """The config of the job that is tuned."""
        if "operator" not in self.config.job:
            raise UserError("config: `job`: names a job. Start this by python -m recap.engine.tune, which looks it up.")
        return configs.check(self.config.job, "the job that is tuned")

    @cached_property
    def grid(self) -> Grid:
        return Grid.checked(self.config.grid)

    # --- what a login node asks ---------------------------------------------------------------

    def keep_in(self, folder: Path) -> None:
        self._folder = folder.parent / tuned.FOLDER
        self._inner = self.job.operator()
        if keep := getattr(self._inner, "keep_in", None):
            keep(folder)

    def plan(self) -> list[Shard]:
        assert self._inner is not None, "keep_in() comes first"
        try:
            self._planned = self._inner.plan()
        except MissingShards as error:
            self._planned = error.found
        if not self._planned:
            raise UserError("plan: the job that is tuned has no shards. Check the patterns of its `data`.")
        trials = Trials(self._folder, self.job, self.grid)
        if not trials.configs:
            raise UserError(f"tune: every point of the grid is refused: {next(iter(trials.refused.values()))}")
        self._said = self._words(trials)
        most = min(self.config.trials, len(trials.configs))
        # Another grid, or another job, has shards of its own beside those that are done.
        ids = [f"{trials.digest()}-{number:03d}" for number in range(1, most + 1)]
        return [Shard(shard, str(self._folder / shard), 0, expected=1) for shard in ids]

    def freeze(self, folder: Path) -> None:
        if write := getattr(self._inner, "freeze", None):
            write(folder)
        write_sample(self._folder, self._planned)

    def _words(self, trials: Trials) -> list[tuple[str, str]]:
        axes = " × ".join(f"{key} ({len(values)})" for key, values in self.grid.values.items())
        most = min(self.config.trials, len(trials.configs))
        said = [("tune", f"{axes}: {len(self.grid)} points, {most} trials of {self.config.seconds:g} s at most")]
        if trials.refused:
            point, why = next(iter(trials.refused.items()))
            said.append(("", f"{len(trials.refused)} points are refused, the first {self.grid.changes(point)}: {why}"))
        if ended := trials.ended():
            said.append(("", f"{len(ended)} points are measured already"))
        return said

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return self._said

    def column(self) -> Column:
        return Column(self.config.column, FIELDS)

    def longest_wait(self) -> tuple[float, str]:
        """A trial as a whole, of which nothing is heard meanwhile."""
        settings = self.job.run.map
        return settings.setup_s + self.config.seconds + settings.hang_s + 2 * SETTLING_S, "seconds"

    def one_gpu(self) -> str:
        return ""

    def continues(self, planned: Iterable[Shard]) -> None: ...

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        yield Item(shard.id, 0, shard.id, Path(shard.uri))

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._row(item) for item in items]

    def _row(self, item: Item) -> Row:
        """Measure a point. What fails is a result as good as others."""
        trials = Trials(item.payload.parent, self.job, self.grid)
        try:
            point = trials.claim(item.shard, self.config.trials)
        except LookupError as error:
            return Row(item.shard, item.index, item.key, SKIPPED, f"trial: {error}")
        outcome, identity = self._measured(trials, point)
        changes = self.grid.changes(point)
        record = {
            **asdict(outcome), "shard": item.shard, "changes": changes, "identity": identity,
            "settings": tuned.settings(trials.configs[point]), "host": socket.gethostname(), "when": time.time(),
            "logs": str(trials.logs(point)),
        }  # fmt: skip
        trials.write(point, record)
        values = {
            "settings": str(changes), "outcome": outcome.kind, "why": outcome.why, "rate": outcome.rate,
            "tokens_per_s": outcome.tokens,
        }  # fmt: skip
        status = (OK, "") if outcome.kind == "ok" else (SKIPPED, f"trial: {outcome.kind}")
        return Row(item.shard, item.index, item.key, *status, detail=outcome.why, values=values)

    def _measured(self, trials: Trials, point: Point) -> tuple[Outcome, str]:
        """What came of a point's trial, and the identity of what its job would make."""
        config = trials.configs[point]
        try:
            identity = configs.identity(config, config.operator())
        except UserError as error:
            return Outcome(REFUSED, str(error)), ""
        shards = [Shard(**shard) for shard in read_sample(trials.folder)["shards"]]
        trial = Trial(config, shards, trials.logs(point), self.config.seconds, self.config.samples)
        return trial.run(), identity
