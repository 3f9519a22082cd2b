"""Selections: exact at the edge, the same whatever the slots, reasons that add up, statistics of the right run."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from hpc import config as configs
from hpc.base.errors import Exit, UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.select import statistics
from recap.select.operator import SelectOperator
from recap.select.order import at_ranks
from recap.select.repeated import Repeated
from tests.data.corpus import build, keys
from tests.select.worlds import given, kept, selecting
from tests.support.jobs import inline
from tests.support.published import published, rows_of

COUNTS = [700, 5, 600]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tars/ of three sizes; scores/: every 11th row has no score; three texts are had by many rows."""
    folder = tmp_path_factory.mktemp("select")
    build(folder, COUNTS)
    rng = random.Random(3)
    everything = [key for shard, count in enumerate(COUNTS) for key in keys(shard, count)]
    values = {}
    for number, key in enumerate(everything):
        text = f"Text {number % 3}" if number % 4 == 0 else f"text of {key}"
        score = float(np.float32(round(rng.random(), 2)))  # a hundred values: edges are shared
        row: dict[str, Any] = {
            "score": score,
            "other": rng.gauss(0, 1),
            "text": text,
            "language": rng.choice(["en", "de"]),
        }
        row["lint"] = ["cut", "refusal"] if number % 50 == 1 else ["cut"] if number % 50 == 2 else []
        values[key] = row if number % 11 else {}
        if number == 5:
            values[key] = row | {"score": None}
        if number == 6:
            values[key] = row | {"other": float("nan")}
    given(folder, "scores", values)
    return folder


def edges(world: Path, *flags: str, name: str = "edges") -> str:
    file = world / f"{name}.json"
    done = inline("recap.select.statistics", str(world / "scores"), "--out", str(file), *flags)
    assert done.returncode == Exit.COMPLETE, done.stderr
    return str(file)


def operator(tree: dict[str, Any]) -> SelectOperator:
    return SelectOperator(configs.check({"cluster": {"kind": "local"}, **tree}, "test").work)


# --- exact values at ranks -------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@drawn(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=60), st.data())
def test_values_at_ranks_are_those_of_a_sort(found: list[float], data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=3))
    values = np.array(found)
    ordered = np.sort(values + 0.0)
    for rank, place in zip(ranks, at_ranks(lambda: [values[::2], values[1::2]], ranks), strict=True):
        wanted = ordered[rank]
        assert (place.value, place.below, place.equal) == (wanted, (values < wanted).sum(), (values == wanted).sum())


def test_repeated_values_are_counted_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**63), 2**63 - 1, 400)[rng.integers(0, 400, 3000)]
    places = np.arange(3000, dtype=np.int64)
    with Repeated(tmp_path) as counted:
        for start in range(0, 3000, 700):
            counted.add(values[start : start + 700], places[start : start + 700])
        found = counted.more_than([1, 9])
    assert not list(tmp_path.iterdir())
    often = Counter(values.tolist())
    for limit, (digests, first, rows) in found.items():
        assert digests.tolist() == sorted(value for value, count in often.items() if count > limit)
        assert rows == sum(count for count in often.values() if count > limit)
        assert [int(values[place]) for place in first] == digests.tolist()
        assert all(value not in values[:place] for value, place in zip(digests, first, strict=True))


# --- rules -----------------------------------------------------------------------------------


def test_the_best_share_is_exact_and_the_edge_goes_where_the_rule_says(world: Path) -> None:
    file = edges(world, "--top", "score=0.3", "--top", "other=0.12")
    scored = {
        row["key"]: row["score"]
        for row in rows_of(world / "scores")
        if row["score"] is not None and row["status"] == OK
    }
    count = round(0.3 * len(scored))
    edge = sorted(scored.values())[-count]
    above, at = sum(v > edge for v in scored.values()), sum(v == edge for v in scored.values())
    assert above < count < above + at  # the edge is shared: there is something to decide
    for how, wanted in (("keep", above + at), ("drop", above)):
        rule = {"column": "score", "top": 0.3, "statistics": file, "edge": how}
        tree = selecting(world, f"top-{how}", columns={"score": ("scores", "score")}, rules={"best": rule})
        assert f"{wanted:,} rows" in operator(tree).describe()[0][1]
        rows = rows_of(published(tree))
        assert len(kept(rows)) == wanted
        assert set(kept(rows)) == {k for k, v in scored.items() if v > edge or (v == edge and how == "keep")}
        assert Counter(row["reason"] for row in rows) == {
            "": wanted, "best": len(scored) - wanted, "best: no value": len(rows) - len(scored),
        }  # fmt: skip
    other = [row["other"] for row in rows_of(world / "scores") if row["status"] == OK and np.isfinite(row["other"])]
    rule = {"column": "other", "top": 0.12, "statistics": file}
    rows = rows_of(published(selecting(world, "other", columns={"other": ("scores", "other")}, rules={"best": rule})))
    assert len(kept(rows)) == round(0.12 * len(other))  # no two are alike; the NaN is no value


def test_rules_in_order_and_their_reasons(world: Path) -> None:
    file = edges(world, "--shared", "text=20", name="shared")
    columns = {name: ("scores", name) for name in ("score", "text", "language", "lint")}
    rules = {
        "faults": {"column": "lint", "none_of": ["refusal", "leaked prompt"]},
        "english": {"column": "language", "one_of": ["en"]},
        "middle": {"column": "score", "above": 0.1, "at_most": 0.9},
        "often": {"column": "text", "shared_by": 20, "statistics": file},
    }
    rows = rows_of(published(selecting(world, "ordered", columns=columns, rules=rules)))
    texts = Counter(r["text"].lower() for r in rows_of(world / "scores") if r["status"] == OK)
    for row, source in zip(rows, rows_of(world / "scores"), strict=True):
        if source["status"] != OK:
            wanted = "faults: no value"
        elif "refusal" in source["lint"]:
            wanted = "faults"
        elif source["language"] != "en":
            wanted = "english"
        elif source["score"] is None:
            wanted = "middle: no value"
        elif not 0.1 < source["score"] <= 0.9:
            wanted = "middle"
        else:
            wanted = "often" if texts[source["text"].lower()] > 20 else ""
        assert (row["reason"], row["status"]) == (wanted, "skipped" if wanted else OK)
    assert min(Counter(row["reason"] for row in rows).values()) > 0 and len(Counter(row["reason"] for row in rows)) == 7


def test_the_first_of_equal_values_is_kept(world: Path) -> None:
    file = edges(world, "--shared", "text=1", name="copies")
    rule = {"column": "text", "shared_by": 1, "first": True, "statistics": file}
    rows = rows_of(published(selecting(world, "first", columns={"text": ("scores", "text")}, rules={"copy": rule})))
    seen: set[str] = set()
    for row, source in zip(rows, rows_of(world / "scores"), strict=True):
        if source["status"] == OK:
            assert (row["status"] == OK) == (source["text"] not in seen)
            seen.add(source["text"])


def test_bins_are_numpys_and_a_value_on_an_edge_goes_up(world: Path) -> None:
    file = edges(world, "--uniform", "score=8", "--bins", "score=4", name="bins")
    source = rows_of(world / "scores")
    scored = np.array([row["score"] for row in source if row["status"] == OK and row["score"] is not None])
    for uniform, inner, bins in (
        (True, np.linspace(scored.min(), scored.max(), 9)[1:-1], 8),
        (False, np.sort(scored)[[len(scored) * i // 4 for i in (1, 2, 3)]], 4),
    ):
        bucket = {"column": "score", "bins": bins, "uniform": uniform, "statistics": file}
        rows = rows_of(
            published(selecting(world, f"bins-{bins}", columns={"score": ("scores", "score")}, bucket=bucket))
        )
        found = [row["level"] for row in rows if row["status"] == OK]
        assert found == np.digitize(scored, inner).tolist()  # as torch.bucketize(right=True)
        assert set(found) == set(range(bins))
        assert {row["reason"] for row in rows if row["status"] != OK} == {"bucket: no value"}


def test_equal_values_make_no_edge_silently(world: Path, tmp_path: Path) -> None:
    build(tmp_path, [40])
    given(tmp_path, "scores", {key: {"score": 0.5} for key in keys(0, 40)})
    done = inline(
        "recap.select.statistics",
        str(tmp_path / "scores"),
        "--out",
        str(tmp_path / "e.json"),
        "--top",
        "score=0.3",
        "--bins",
        "score=4",
    )
    assert "keeps or drops 40 rows together" in done.stdout and "bins between stay empty" in done.stdout
    for how, wanted in (("keep", 40), ("drop", 0)):
        rule = {"column": "score", "top": 0.3, "edge": how, "statistics": str(tmp_path / "e.json")}
        tree = selecting(tmp_path, how, columns={"score": ("scores", "score")}, rules={"best": rule})
        assert f"40 rows at the edge are {'kept' if how == 'keep' else 'dropped'}" in operator(tree).describe()[0][1]
        assert len(kept(rows_of(published(tree)))) == wanted


# --- texts -----------------------------------------------------------------------------------


def test_nguyens_rule(tmp_path: Path) -> None:
    """Raw if it is good, else the synthetic one if that passes: the truth table of eight rows."""
    build(tmp_path, [8])
    table = [(r, s, t) for r in (0.1, 0.5) for s in (0.1, 0.5) for t in ("text", "")]
    rows = {
        key: {"raw": f"raw {key}", "syn": f"syn {key}" if t else "", "raw_score": r, "syn_score": s}
        for key, (r, s, t) in zip(keys(0, 8), table, strict=True)
    }
    given(tmp_path, "scores", rows)
    either = [
        {"text": "raw", "column": "raw_score", "at_least": 0.5},
        {"text": "syn", "column": "syn_score", "above": 0.3},
    ]
    columns = {name: ("scores", name) for name in ("raw", "syn", "raw_score", "syn_score")}
    found = rows_of(published(selecting(tmp_path, columns=columns, either=either)))
    wanted = ["", "", "syn", "", "raw", "raw", "raw", "raw"]
    assert [row["source"] or "" for row in found] == wanted
    assert [row["caption"] for row in found] == [
        f"{w} {k}" if w else None for w, k in zip(wanted, keys(0, 8), strict=True)
    ]
    assert [row["reason"] for row in found] == ["" if w else "no text is left" for w in wanted]


def test_the_two_best_texts(tmp_path: Path) -> None:
    build(tmp_path, [4])
    scores = [(0.1, 0.9, 0.5), (0.5, 0.5, 0.5), (0.2, None, 0.1), (None, None, 0.3)]
    rows = {
        key: {f"t{i}": f"{key} {i}" for i in range(3)} | {f"s{i}": value for i, value in enumerate(found)}
        for key, found in zip(keys(0, 4), scores, strict=True)
    }
    given(tmp_path, "scores", rows)
    columns = {name: ("scores", name) for name in ("t0", "t1", "t2", "s0", "s1", "s2")}
    best = {"texts": ["t0", "t1", "t2"], "scores": ["s0", "s1", "s2"], "count": 2}
    found = rows_of(published(selecting(tmp_path, columns=columns, best=best)))
    assert [(row["source"], row["source_2"]) for row in found] == [
        ("t1", "t2"),
        ("t0", "t1"),
        ("t0", "t2"),
        ("t2", None),
    ]
    assert found[0]["caption"].endswith(" 1") and found[0]["caption_2"].endswith(" 2")


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work, said",
    [
        ({}, "`rules`: there are none"),
        ({"rules": {"a": {"column": "score"}}}, "`rules.a`: tests nothing"),
        ({"rules": {"a": {"column": "score", "above": 1, "one_of": ["x"]}}}, "tests above, one_of"),
        ({"rules": {"a": {"column": "score", "above": 1, "at_least": 0}}}, "two bounds on one side"),
        ({"rules": {"a": {"column": "score", "top": 30, "statistics": "x"}}}, "`rules.a.top`: 30.0 is no share"),
        ({"rules": {"a": {"column": "score", "top": 0.3}}}, "`rules.a.statistics`: top and shared_by are of all rows"),
        ({"rules": {"a": {"column": "score", "top": 0.3, "statistics": "/none"}}}, "/none is no statistics file"),
        ({"bucket": {"column": "score", "edges": [2, 1]}}, "do not ascend"),
        ({"best": {"texts": ["score"], "scores": []}}, "as many scores as texts"),
        ({"rules": {"a": {"column": "scores", "above": 1}}}, r"'scores' is not among data.columns \(score\)"),
    ],
)  # fmt: skip
def test_wrong_rules_are_refused_when_planned(world: Path, work: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        operator(selecting(world, columns={"score": ("scores", "score")}, **work)).describe()


def test_statistics_of_another_run_are_refused(world: Path, tmp_path: Path) -> None:
    file = edges(world, "--top", "score=0.3", name="mine")
    build(tmp_path, [40])
    given(tmp_path, "scores", {key: {"score": 0.5} for key in keys(0, 40)})
    rule = {"column": "score", "top": 0.3, "statistics": file}
    columns = {"score": ("scores", "score")}
    with pytest.raises(UserError, match=r"mine.json is of other shards than .*Make it again: python -m recap.select"):
        operator(selecting(tmp_path, columns=columns, rules={"a": rule})).describe()
    with pytest.raises(UserError, match=r"has no --top score=0.2; it has --top score=0.3"):
        operator(selecting(world, columns=columns, rules={"a": rule | {"top": 0.2}})).describe()
    first = operator(selecting(world, columns=columns, rules={"a": rule})).identity()
    changed = json.loads(Path(file).read_text())
    changed["top"]["score"]["0.3"]["edge"] = 0.0
    Path(file).write_text(json.dumps(changed))
    from recap.select.rules import open_statistics

    open_statistics.cache_clear()
    assert operator(selecting(world, columns=columns, rules={"a": rule})).identity() != first


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "nothing is asked for"),
        (["--top", "score=1.5"], "--top score=1.5: write FIELD and a number"),
        (["--bins", "score=1"], "--bins score=1: write FIELD"),
        (["--top", "text=0.5"], "text of .* is a string: edges are of numbers"),
        (["--top", "none=0.5"], "has no none"),
    ],
)
def test_the_statistics_command_says_what_is_wrong(world: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    done = inline("recap.select.statistics", str(world / "scores"), "--out", str(tmp_path / "e.json"), *flags)
    assert done.returncode == Exit.USAGE and not (tmp_path / "e.json").exists()
    import re

    assert re.search(said, done.stderr), done.stderr


def test_statistics_do_not_depend_on_where_a_run_lies(world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world / "scores", tmp_path / "moved", symlinks=True)
    wanted: Any = {kind: {} for kind in statistics.KINDS} | {"top": {"score": [0.3]}}
    one, two = (
        statistics.statistics(Published(path), wanted, tmp_path) for path in (world / "scores", tmp_path / "moved")
    )
    assert one == two


def test_what_holds_no_numbers_is_refused_when_planned(tmp_path: Path) -> None:
    build(tmp_path, [4])
    given(tmp_path, "scores", {key: {"text": "a", "cut": place > 1} for place, key in enumerate(keys(0, 4))})
    works: list[tuple[dict[str, Any], str]] = [
        ({"rules": {"a": {"column": "text", "above": 1}}}, r"`rules.a.column`: column text holds string, a number"),
        ({"bucket": {"column": "text", "edges": [1.0]}}, "`bucket.column`: column text"),
        ({"best": {"texts": ["text"], "scores": ["text"]}}, r"`best.scores\[0\]`: column text"),
        ({"either": [{"text": "text", "column": "text", "at_most": 3}]}, r"`either\[0\].column`: column text"),
    ]
    columns = {name: ("scores", name) for name in ("text", "cut")}
    for work, said in works:
        with pytest.raises(UserError, match=said):
            operator(selecting(tmp_path, columns=columns, **work)).plan()
    rules: list[dict[str, Any]] = [{"none_of": ["true"]}, {"one_of": ["False"]}, {"below": 1}]
    for number, rule in enumerate(rules):
        tree = selecting(tmp_path, f"cut-{number}", columns=columns, rules={"cut": {"column": "cut", **rule}})
        assert kept(rows_of(published(tree))) == keys(0, 4)[:2]


def test_what_is_not_finite_is_no_shared_value(tmp_path: Path) -> None:
    build(tmp_path, [5])
    values = [0.5, 0.5, float("nan"), float("nan"), float("inf")]
    given(tmp_path, "scores", {key: {"v": value} for key, value in zip(keys(0, 5), values, strict=True)})
    done = inline("recap.select.statistics", f"{tmp_path}/scores", "--out", f"{tmp_path}/e.json", "--shared", "v=1")
    assert "v: 2 rows have a value of more than 1 rows" in done.stdout, done.stderr
