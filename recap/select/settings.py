"""Config keys of a selecting job. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.data.rows import RowsConfig

TESTS = ("at_least", "above", "at_most", "below", "one_of", "none_of", "top", "shared_by")
FARTHEST = 16  # the largest distance in bits: the search takes longer with each
GLOBAL = ("top", "shared_by")  # tests that need statistics of all rows


@dataclass
class Rule:
    """A test of one column's value: one or two bounds, or one of the other tests. A row without a value does not
    pass."""

    column: str = semantic("", "which of data.columns is looked at")
    at_least: float | None = semantic(None, "the value is this or more")
    above: float | None = semantic(None, "the value is more than this")
    at_most: float | None = semantic(None, "the value is this or less")
    below: float | None = semantic(None, "the value is less than this")
    one_of: list[str] = semantic([], "the value is one of these texts; a list holds one of them")
    none_of: list[str] = semantic([], "the value is none of these texts; a list holds none of them")
    top: float | None = semantic(None, "the value is among this share of all rows that have one, the largest")
    edge: str = semantic("keep", "top: rows that share the value at the edge: keep | drop")
    shared_by: int | None = semantic(None, "at most so many rows have the value")
    first: bool = semantic(False, "shared_by: of a value that more rows have, the first row is kept")
    distance: int = semantic(0, "shared_by: hashes that differ in at most so many of their 64 bits are one value")
    statistics: str = execution("", "top, shared_by: file of python -m recap.select.statistics (its digest counts)")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.statistics = os.path.abspath(self.statistics) if self.statistics else ""

    def tests(self) -> list[str]:
        """Names of the tests that are set."""
        return [name for name in TESTS if getattr(self, name) not in (None, [])]

    @property
    def of_numbers(self) -> bool:
        return not {"one_of", "none_of", "shared_by"}.intersection(self.tests())


@dataclass
class Candidate(Rule):
    """A text that is taken where the row passes its rule."""

    text: str = semantic("", "which of data.columns is the text")


@dataclass
class Best:
    """The texts with the largest scores. Fields caption and source (its column), of further ranks caption_2, ..."""

    texts: list[str] = semantic([], "columns of texts; of equal scores the earlier one is better")
    scores: list[str] = semantic([], "columns of their scores, in the same order")
    count: int = semantic(1, "how many texts are written, best first")


@dataclass
class Bucket:
    """The number of the bin in which a value lies: field level, from 0. A value on an edge is in the upper bin."""

    column: str = semantic("", "which of data.columns is looked at")
    edges: list[float] = semantic([], "inner edges, ascending")
    bins: int = semantic(0, "instead of edges: bins of the statistics file")
    uniform: bool = semantic(False, "bins: equally wide; else with equally many rows")
    statistics: str = execution("", "bins: file of python -m recap.select.statistics (its digest counts)")

    def __post_init__(self) -> None:
        self.statistics = os.path.abspath(self.statistics) if self.statistics else ""


@dataclass
class SelectConfig:
    """Config keys of a selecting job."""

    column: str = semantic("selected", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    rules: dict[str, Rule] = semantic({}, "by name, in order: a row is dropped by the first that it does not pass")
    best: Best | None = semantic(None, "field caption: of several texts that with the largest score")
    either: list[Candidate] = semantic([], "field caption: the first text whose rule is passed; none: dropped")
    bucket: Bucket | None = semantic(None, "field level: the bin of a value")


def check(config: SelectConfig) -> None:
    """UserError for the first thing that cannot work."""
    if not (config.rules or config.best or config.either or config.bucket):
        raise UserError("config: `rules`: there are none. Write rules.NAME.column=... and a test: see configs/select.")
    if config.best and config.either:
        raise UserError("config: `best` and `either` both choose a text. Leave out one of them.")
    for name, rule in config.rules.items():
        _check_rule(f"rules.{name}", rule)
    for number, candidate in enumerate(config.either):
        _check_rule(f"either[{number}]", candidate)
        if not candidate.text:
            raise UserError(f"config: `either[{number}].text`: empty. Name the column that is taken.")
    if (best := config.best) and not (len(best.texts) == len(best.scores) >= best.count >= 1):
        raise UserError("config: `best`: write as many scores as texts, and a count of at most so many.")
    if bucket := config.bucket:
        if bool(bucket.edges) == bool(bucket.bins):
            raise UserError("config: `bucket`: write edges, or bins with a statistics file: one of both.")
        if bucket.edges != sorted(set(bucket.edges)):
            raise UserError(f"config: `bucket.edges`: {bucket.edges} do not ascend.")
        if bool(bucket.bins) != bool(bucket.statistics):
            raise UserError("config: `bucket`: bins and statistics go together: python -m recap.select.statistics.")


def _check_rule(where: str, rule: Rule) -> None:
    given = rule.tests()
    bounds = {"at_least", "above", "at_most", "below"}
    if not rule.column:
        raise UserError(f"config: `{where}.column`: empty. Name one of data.columns.")
    if not given or (len(given) > 1 and not bounds.issuperset(given)):
        raise UserError(
            f"config: `{where}`: tests {', '.join(given) or 'nothing'}. Write bounds ({', '.join(sorted(bounds))}), or "
            f"one of {', '.join(name for name in TESTS if name not in bounds)}."
        )
    if {"at_least", "above"}.issubset(given) or {"at_most", "below"}.issubset(given):
        raise UserError(f"config: `{where}`: two bounds on one side. Keep one.")
    if rule.top is not None and not 0 < rule.top <= 1:
        raise UserError(f"config: `{where}.top`: {rule.top} is no share. Write 0.3 for the best 30 %.")
    if rule.edge not in ("keep", "drop"):
        raise UserError(f"config: `{where}.edge`: {rule.edge!r} is unknown. Write keep or drop.")
    if rule.shared_by is not None and rule.shared_by < 1:
        raise UserError(f"config: `{where}.shared_by`: {rule.shared_by}: a value that a row has is had by 1 at least.")
    if not 0 <= rule.distance <= FARTHEST or (rule.distance and rule.shared_by is None):
        raise UserError(f"config: `{where}.distance`: {rule.distance}: 0 to {FARTHEST} bits, and only with shared_by.")
    if bool(rule.statistics) != bool(set(given) & set(GLOBAL)):
        raise UserError(
            f"config: `{where}.statistics`: {' and '.join(GLOBAL)} are of all rows and need the file that python -m "
            "recap.select.statistics writes; other tests need none."
        )
