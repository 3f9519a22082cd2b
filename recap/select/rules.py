"""Rules of a selection as functions of a row's value. Rules over all rows take what they need from statistics files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap.data.column import ColumnConfig
from recap.data.columns import RunColumn
from recap.data.rows import Rows
from recap.data.texts import text_digest
from recap.select.settings import Rule
from recap.select.statistics_file import Shared, Statistics

Test = Callable[[Any, int], bool]
"""Whether a row passes, by its value, which is not null, and its place, the digest of shard and key."""


@dataclass(frozen=True)
class RuleTest:
    """A rule, ready to test rows. description: for a dry run. statistics: digest of its statistics file, "" without
    one."""

    column: str
    test: Test
    description: str
    statistics: str = ""
    places: bool = False  # whether the test depends on a row's place

    def fails(self, columns: Mapping[str, Any], place: int) -> str:
        """Why a row does not pass: "" where it does, "no value" where there is nothing to test."""
        value = columns[self.column]
        if not has_value(value):
            return "no value"
        return "" if self.test(value, place) else "fails"


def has_value(value: Any) -> bool:
    """Whether a value is not null, NaN or infinite."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


@cache
def open_statistics(path: str) -> Statistics:
    return Statistics(path)


def statistics_of(path: str, name: str, configs: Mapping[str, ColumnConfig], rows: Rows) -> tuple[Statistics, str]:
    """(the statistics file, the column's field). UserError where the file is of another run than the column reads.

    Args:
        path: of the file. name: of the column. configs: all columns' configs.
    """
    column = rows.columns[name]
    if not isinstance(column, RunColumn):
        raise UserError(f"config: column {name} is not of a run: statistics are of one. Write data.columns.{name}.run.")
    found = open_statistics(path)
    if not rows.config.manifests:  # checked at the launch, not again in each engine
        found.check(name, str(configs[name].run), column.published)
    return found, column.field


def compile_rule(rule: Rule, configs: Mapping[str, ColumnConfig], rows: Rows) -> RuleTest:
    """Make a config's rule ready to test rows. UserError where its statistics are missing or of another run."""
    kind = rule.tests()[0]
    if kind == "top":
        return _top(rule, configs, rows)
    if kind == "shared_by":
        return _shared(rule, configs, rows)
    if kind in ("one_of", "none_of"):
        listed, wanted = frozenset(getattr(rule, kind)), kind == "one_of"
        description = f"{rule.column} {'is one of' if wanted else 'is none of'} {', '.join(sorted(listed))}"
        return RuleTest(rule.column, lambda value, _: (not listed.isdisjoint(_texts(value))) == wanted, description)
    return RuleTest(
        rule.column,
        _bounds(rule),
        f"{rule.column} {' and '.join(_bound_in_words(rule, name) for name in rule.tests())}",
    )


def _texts(value: Any) -> list[str]:
    """The texts that `one_of` and `none_of` compare a value by: of a list, those of its entries; of a boolean, both
    `True` and `true`, as YAML writes it."""
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [str(value), str(value).lower()] if isinstance(value, bool) else [str(value)]


def _bound_in_words(rule: Rule, name: str) -> str:
    return f"{name.replace('_', ' ')} {getattr(rule, name):g}"


def _bounds(rule: Rule) -> Test:
    tests: list[Callable[[float], bool]] = []
    if (low := rule.at_least) is not None:
        tests.append(lambda value: value >= low)
    if (under := rule.above) is not None:
        tests.append(lambda value: value > under)
    if (high := rule.at_most) is not None:
        tests.append(lambda value: value <= high)
    if (over := rule.below) is not None:
        tests.append(lambda value: value < over)
    return lambda value, _: all(test(number_of(value, rule.column)) for test in tests)


def number_of(value: Any, column: str) -> float:
    """A column's value as a number. UserError where it is none."""
    if isinstance(value, (int, float)):
        return float(value)
    raise UserError(f"select: column {column} holds {str(value)[:60]!r}, a number is expected. Set its `field`.")


def _top(rule: Rule, configs: Mapping[str, ColumnConfig], rows: Rows) -> RuleTest:
    found, field = statistics_of(rule.statistics, rule.column, configs, rows)
    assert rule.top is not None
    top, keep = found.top(field, rule.top), rule.edge == "keep"
    count = top.above + (top.at if keep else 0)
    tie = f"; {top.at:,} rows at the edge are {'kept' if keep else 'dropped'}" if top.at > 1 or not keep else ""
    description = f"{rule.column}: best {rule.top:.2%}, {'from' if keep else 'above'} {top.edge:g}: {count:,} rows{tie}"
    edge = top.edge
    test: Test = (
        (lambda v, _: number_of(v, rule.column) >= edge) if keep else (lambda v, _: number_of(v, rule.column) > edge)
    )
    return RuleTest(rule.column, test, description, found.digest)


def _shared(rule: Rule, configs: Mapping[str, ColumnConfig], rows: Rows) -> RuleTest:
    found, field = statistics_of(rule.statistics, rule.column, configs, rows)
    assert rule.shared_by is not None
    shared, first = found.shared(field, rule.shared_by, rule.distance), rule.first
    near = f", those within {rule.distance} bits being one" if rule.distance else ""
    description = f"{rule.column}: values of at most {rule.shared_by:,} rows{near}; {shared.rows:,} rows have others"
    if first:
        description += f", of which {len(np.unique(shared.first)):,} are the first of their value and kept"

    def test(value: Any, place: int) -> bool:
        at = _find(shared, value if isinstance(value, int) else text_digest(str(value)))
        return at is None or (first and int(shared.first[at]) == place)

    return RuleTest(rule.column, test, description, found.digest, first)


def _find(shared: Shared, value: int) -> int | None:
    at = int(np.searchsorted(shared.values, value))
    return at if at < len(shared.values) and int(shared.values[at]) == value else None


def check_places(found: RuleTest, shards: list[Shard], published: Published) -> None:
    """UserError where a rule depends on places, and the shards have other ids than in the run of its statistics."""
    if found.places and (strange := {s.id for s in shards} - {s.id for s in published.shards}):
        raise UserError(
            f"select: shard {min(strange)} has another id in {published.run.path}: which row is the first of its value "
            "is known by that id. Leave data.shards out, so that the run's own shards are read."
        )
