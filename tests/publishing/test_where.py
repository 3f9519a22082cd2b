"""`--where`: counts equal duckdb's, mistakes are named, nothing of a condition is run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.base.errors import UserError
from recap.exporting.where import parse

if TYPE_CHECKING:
    import duckdb

NAN, INF = float("nan"), float("inf")
TABLE = pa.table(
    {
        "score": pa.array([0.1, 0.3, 0.5, None, NAN, INF, -INF, 0.3], pa.float64()),
        "other": pa.array([0.3, NAN, None, 0.5, NAN, 0.1, INF, 0.3], pa.float64()),
        "length": pa.array([1, 2, None, 4, 5, -7, 0, 2], pa.int64()),
        "small": pa.array([0.1, 0.3, 0.5, None, NAN, -0.0, 0.0, 0.7], pa.float32()),
        "large": pa.array([2**53, 2**53 + 1, None, -1, 0, 2**63 - 1, -(2**63), 7], pa.int64()),
        "byte": pa.array([0, 1, 255, None, 4, 7, 0, 2], pa.uint8()),
        "zero": pa.array([0.0, -0.0, None, 1.0, NAN, -0.0, 0.0, 2.0], pa.float64()),
        "text": pa.array(["a", "it's", "é", None, "", "b", 'a "b"', "and"], pa.string()),
        "lint": pa.array([None, [], ["x"], None, ["y", "z"], None, None, ["x"]], pa.list_(pa.string())),
        "is good": pa.array([True, False, None, True, False, None, True, True]),
    }
)
ATOMS = [
    "score > 0.3", "score >= .3", "score < 0.3", "score<=3e-1", "score = 0.3", "score != 0.3", "0.3 < score",
    "score > other", "score>=other", "score=other", "score<>other", "length > 4.5", "length in (1,2,-7)",
    "length not in (1, 5)", "score in (0.1, 5)", "score not in (0.1)", "text = 'it''s'", "text > 'a'", "text <= 'b'",
    "text not in ('a','')", "text = 'and'", "lint is null", "lint is not null", '"is good"', 'not "is good"',
    '"is good" = true', '"is good" in (false)', "length < 99999999999999999999", "length > score", "text IS NOT NULL",
    "length = +2", "2 > 1", "1 = 2", "small = 0.3", "small > 0.1", "small in (0.3, 0.5, 0)", "small <= score",
    "large > 9007199254740992.0", "large in (9007199254740993, 2.5)", "large not in (0.5)", "large > 1e30",
    "large < small", "large >= score", "zero in (0, 5)", "zero = 0", "zero not in (0.0, 1)",
    "byte in (-1, 255, 999)", "byte > -1", "1 in (1.0, 2)", "byte = 255.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    with duckdb.connect(config={"threads": 1}) as found:
        found.register("given", TABLE)
        yield found


def test_counts_are_duckdbs(database: duckdb.DuckDBPyConnection) -> None:
    rng, shapes = random.Random(0), ["({}) and {}", "{} or {}", "not ({}) and {}", "{} AND NOT {}", "not ({} or {})"]
    for number in range(150):
        condition = ATOMS[number % len(ATOMS)]
        for _ in range(rng.randint(0, 4) if number >= len(ATOMS) else 0):
            condition = rng.choice(shapes).format(condition, rng.choice(ATOMS))
        [(count,)] = database.sql(f"select count(*) from given where {condition}").fetchall()
        assert parse(condition, TABLE.schema).keep(TABLE).num_rows == count, condition
    assert parse("length > 0", TABLE.schema).keep(TABLE)["length"].to_pylist() == [1, 2, 4, 5, 2]  # in their order
    numbers = parse(f"length in ({','.join(map(str, range(5000)))})", TABLE.schema)
    assert numbers.keep(TABLE).num_rows == 6


NUMBERS = st.one_of(
    st.integers(-9, 9).map(str),
    st.floats(-2, 2, allow_nan=False).map(repr),
    st.sampled_from(["score", "other", "length"]),
)
TEXTS = st.one_of(st.text("ab' é\"", max_size=3).map(lambda text: "'" + text.replace("'", "''") + "'"), st.just("text"))
OPERATORS = st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="])


CONDITIONS = st.recursive(
    st.one_of(
        st.builds("{} {} {}".format, NUMBERS, OPERATORS, NUMBERS),
        st.builds("{} {} {}".format, TEXTS, OPERATORS, TEXTS),
        st.builds("{} {} ({})".format, st.sampled_from(["score", "length"]), st.sampled_from(["in", "NOT IN"]),
                  st.lists(st.integers(-9, 9).map(str), min_size=1, max_size=3).map(", ".join)),
        st.builds("{} is {}".format, st.sampled_from(["score", "text", "lint", '"is good"']),
                  st.sampled_from(["null", "not null"])),
    ),
    lambda parts: st.one_of(
        st.builds("({}) {} ({})".format, parts, st.sampled_from(["and", "or", "AND NOT"]), parts),
        st.builds("not ({})".format, parts),
    ),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(CONDITIONS)
def test_counts_of_any_condition_are_duckdbs(database: duckdb.DuckDBPyConnection, condition: str) -> None:
    [(count,)] = database.sql(f"select count(*) from given where {condition}").fetchall()
    assert parse(condition, TABLE.schema).keep(TABLE).num_rows == count


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("scor > 1", "no such column. Did you mean 'score'?"),
        ("score >", "the end at character 8: a column or a value is expected here"),
        ("score > 'a'", "score is a number, 'a' a text; they cannot be compared"),
        ("lint = 'x'", "lint is a list<item: string>, which can be asked for `is null` alone"),
        ("score > 1 and", "the end at character 14"),
        ("(score > 1", "`)` is expected here"),
        ("score > 1)", "`and`, `or` or the end is expected here"),
        ("score = null", "ask for null with `is null`"),
        ("length not null", "`in` is expected here"),
        ("text = 'abc", "a quote is not closed"),
        ('text = "a"', "Texts stand in single quotes"),
        ("text in (length)", "a list holds values"),
        ("score", "a comparison (= != < <= > >=)"),
        ("length in ()", "a column or a value is expected here"),
        ("text = 'a'; drop", "`;` at character 11: cannot be read"),
        ("__import__('os').system('true')", "no such column"),
        ("(" * 100_000 + "score > 1", "50 deep here"),
        ("length = 1 or " * 1000 + "length = 1", "at most 200 comparisons"),
    ],
)
def test_mistakes_are_named(condition: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        parse(condition, TABLE.schema)
    assert says in str(told.value) and len(str(told.value)) < 600
