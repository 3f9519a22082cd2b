"""A judge's verdict as a score: the parsed answer of a generating job, read as a number. No model runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.score.scorer import ScoreInput
from recap.score.settings import Verdict


class VerdictScorer:
    """See recap.score.scorer.Scorer. A row whose answer did not parse has no score."""

    needs: frozenset[str] = frozenset()
    geometries: list[Geometry] = []

    def __init__(self, name: str, config: Verdict) -> None:
        if not config.column:
            raise UserError(f"config: `scorers.verdict.{name}.column`: empty. Name one of data.columns.")
        self.name, self.config = name, config
        self._values = {word.lower(): float(value) for word, value in config.values.items()}
        self.fields: list[tuple[str, pa.DataType]] = [(name, pa.float32())]

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        words = ", ".join(f"{word} is {value:g}" for word, value in self._values.items())
        return f"column {self.config.column} as a number{f': {words}' if words else ''}"

    def setup(self, device: str) -> None: ...

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        return [self._row_values(row.columns.get(self.config.column)) for row in rows]

    def _row_values(self, value: Any) -> dict[str, Any]:
        """The verdict's number; nothing for an empty verdict. NaN for one that is no number: the job then writes the
        row as skipped with the reason, instead of a score."""
        if value is None or not (word := str(value).strip().lower()):
            return {}
        if self._values:
            return {self.name: self._values.get(word, math.nan)}
        return {self.name: float(value) if isinstance(value, (bool, int, float)) else math.nan}
