"""The selecting job: columns of scores in; one row for each of theirs out, ok where it is kept, else with the rule that
dropped it as its reason. It can also write the best one of several texts. Torch-free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import OK, SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.blocks import BLOCK
from recap.data.column import ColumnOfFiles
from recap.data.columns import RunColumn
from recap.data.rows import JoinedRow, Rows
from recap.data.same_image import FIELD
from recap.data.tar_job import RowsJob
from recap.data.texts import text_digest
from recap.engine.formats import one_line, said
from recap.select.rules import RuleTest, check_places, compile_rule, has_value, number_of, statistics_of
from recap.select.settings import Best, Bucket, SelectConfig, check

NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
NO_TEXT = "no text is left"
PROOF = 8 * BLOCK  # one row out of so many has its image's digest


class SelectOperator(RowsJob, Batched):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = SelectConfig
    version: ClassVar[int] = 1
    batch_size = 4 * BLOCK

    def __init__(self, config: SelectConfig) -> None:
        super().__init__()
        self.config = config
        check(config)
        names = [*config.rules, *(["bucket"] if config.bucket else [])]
        self.by_rule = frozenset({NO_TEXT, *names, *(f"{name}: no value" for name in names)})
        self._writes = bool(config.best or config.either)

    # --- what a login node asks ---------------------------------------------------------------

    @cached_property
    def _rows(self) -> Rows:
        config = self.config
        names = [rule.column for rule in config.rules.values()]
        names += [name for one in config.either for name in (one.column, one.text)]
        names += [*config.best.scores, *config.best.texts] if config.best else []
        names += [config.bucket.column] if config.bucket else []
        return Rows(config.data, list(dict.fromkeys(names)), image=False)

    @cached_property
    def _rules(self) -> dict[str, RuleTest]:
        return {
            name: compile_rule(rule, self.config.data.columns, self._rows) for name, rule in self.config.rules.items()
        }

    @cached_property
    def _either(self) -> list[tuple[RuleTest, str]]:
        return [(compile_rule(one, self.config.data.columns, self._rows), one.text) for one in self.config.either]

    @cached_property
    def _edges(self) -> tuple[list[float], str]:
        """(inner edges of the bins of `bucket`, digest of the statistics file that they are from or "")"""
        bucket = self.config.bucket
        if bucket is None or not bucket.bins:
            return (bucket.edges if bucket else []), ""
        found, field = statistics_of(bucket.statistics, bucket.column, self.config.data.columns, self._rows)
        return found.edges(field, bucket.bins, bucket.uniform), found.digest

    def plan(self) -> list[Shard]:
        shards = super().plan()
        self._check_numbers()
        for found in [*self._rules.values(), *(rule for rule, _ in self._either)]:
            column = self._rows.columns[found.column]
            if isinstance(column, RunColumn):
                check_places(found, shards, column.published)
        return shards

    def _check_numbers(self) -> None:
        """UserError where a bound, an edge or a score is for a column whose files do not hold numbers."""
        config = self.config
        rules = {f"rules.{name}": rule for name, rule in config.rules.items()}
        rules |= {f"either[{number}]": rule for number, rule in enumerate(config.either)}
        asked = {f"{where}.column": rule.column for where, rule in rules.items() if rule.of_numbers}
        asked |= {f"best.scores[{n}]": name for n, name in enumerate(config.best.scores if config.best else [])}
        asked |= {"bucket.column": config.bucket.column} if config.bucket else {}
        for where, name in asked.items():
            column = self._rows.columns[name]
            if not isinstance(column, ColumnOfFiles):
                continue
            try:
                kind = column.type()
            except (UserError, OSError, pa.ArrowException):  # not made yet, or damaged: reported when it is read
                continue
            if not any(is_kind(kind) for is_kind in NUMBERS):
                raise UserError(
                    f"config: `{where}`: column {name} holds {kind}, a number is expected. Set "
                    f"data.columns.{name}.field."
                )

    def identity(self) -> dict[str, Any]:
        made: dict[str, Any] = {"rules": list(self.config.rules)}  # their order says which of two reasons is given
        if columns := self._rows.identities():
            made["columns"] = columns
        files = {name: rule.statistics for name, rule in self._rules.items() if rule.statistics}
        files |= {f"either {n}": rule.statistics for n, (rule, _) in enumerate(self._either) if rule.statistics}
        if self._edges[1]:
            files["bucket"] = self._edges[1]
        return made | ({"statistics": files} if files else {})

    def describe(self) -> list[tuple[str, str]]:
        lines = [(f"rule {name}", rule.description) for name, rule in self._rules.items()]
        lines += [
            ("text" if not n else "", f"{text} where {rule.description}") for n, (rule, text) in enumerate(self._either)
        ]
        if best := self.config.best:
            lines.append(("text", f"the best {best.count} of {', '.join(best.texts)} by {', '.join(best.scores)}"))
        if bucket := self.config.bucket:
            lines.append(("level", f"{bucket.column} in bins at {', '.join(f'{edge:g}' for edge in self._edges[0])}"))
        return lines

    def column(self) -> Column:
        fields: list[tuple[str, pa.DataType]] = []
        for rank in range(self.config.best.count if self.config.best else int(self._writes)):
            fields += [(_ranked("caption", rank), pa.string()), (_ranked("source", rank), pa.string())]
        fields += [("level", pa.int32())] if self.config.bucket else []
        return Column(self.config.column, [*fields, (FIELD, pa.string())])

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return self._rows.read(shard, lambda row: (row, 0))

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._decide(item) for item in items]

    def _decide(self, item: Item) -> Row:
        row: JoinedRow = item.payload
        place = text_digest(f"{item.shard}/{item.key}")
        for name, rule in self._rules.items():
            if why := rule.fails(row.columns, place):
                return self._row(item, name if why == "fails" else f"{name}: {why}")
        values: dict[str, Any] = {}
        if self.config.bucket:
            value = row.columns[self.config.bucket.column]
            if not has_value(value):
                return self._row(item, "bucket: no value")
            values["level"] = level(value, self._edges[0], self.config.bucket)
        if self._writes:
            texts = self._texts(row, place)
            if not texts:
                return self._row(item, NO_TEXT)
            for rank, (source, text) in enumerate(texts):
                values |= {_ranked("caption", rank): text, _ranked("source", rank): source}
        return self._row(item, "", values)

    def _texts(self, row: JoinedRow, place: int) -> list[tuple[str, str]]:
        """(column, text) of each text that is written, best first."""
        if self.config.best:
            return best_texts(self.config.best, row.columns)
        for rule, name in self._either:
            text = one_line(said(row.columns[name]))
            if text and not rule.fails(row.columns, place):
                return [(name, text)]
        return []

    def _row(self, item: Item, reason: str, values: Mapping[str, Any] | None = None) -> Row:
        """An output row. Where no text is written, only one row in PROOF has its image's digest, since digests would be
        most of the file; that is enough to prove that the column was made from these images."""
        made: dict[str, Any] = dict(values or {})
        if self._writes or item.index % PROOF == 0:
            made[FIELD] = item.payload.image
        return Row(item.shard, item.index, item.key, SKIPPED if reason else OK, reason, values=made)

    def next_steps(self, run: str) -> list[str]:
        return [
            f"python -m hpc.launch configs/clip/recap_b16.yaml data.keep={run}      train on what was kept",
            f"python -m recap.export RUN OUT --keep {run}      publish it",
        ]


def best_texts(best: Best, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(column, text) of the texts with the largest scores, best first; of equal scores the earlier column first. Texts
    that are empty or have no score are left out."""
    found = []
    for number, (name, score) in enumerate(zip(best.texts, best.scores, strict=True)):
        text, value = one_line(said(columns[name])), columns[score]
        if text and has_value(value):
            found.append((-number_of(value, score), number, name, text))
    return [(name, text) for _, _, name, text in sorted(found)[: best.count]]


def level(value: Any, edges: list[float], bucket: Bucket) -> int:
    """The number of the bin that a value is in: how many edges are at or below it."""
    return bisect_right(edges, number_of(value, bucket.column))


def _ranked(name: str, rank: int) -> str:
    """The field of the text at a rank: caption, caption_2, ..."""
    return name if not rank else f"{name}_{rank + 1}"
