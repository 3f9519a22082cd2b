"""The generating operator: columns in, typed columns out, against the oracle and a real server loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.operator import Item, Row
from recap.engine import Caption, Request
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from recap.worlds import shape_claims, shapes
from recap.worlds.oracle import Truths, serving
from tests.support.instant import AtOnceEngine

SAMPLES = 40


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    shapes.write_shard(folder / "0.tar", seed=5, first=0, samples=SAMPLES, side=48)
    return folder


@pytest.fixture(scope="module")
def url(tars: Path) -> Iterator[str]:
    with serving(Truths([tars / "0.tar"])) as (found, _):
        yield found


class Echo(AtOnceEngine):
    """An engine that answers what the function `says` returns for a request, filled in as an endpoint fills it."""

    def __init__(self, says: Any) -> None:
        super().__init__()
        self.says = says

    def answer(self, request: Request) -> Caption:
        caption = self.says(request)
        return replace(caption, id=request.id, format=caption.format or "f")


def tree_of(tars: Path, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "data": {"shards": [str(tars)], "columns": {"alt": {"member": "txt"}}},
        "writer": {"backend": "openai", "endpoint": "http://localhost:1/v1", "served_model": "m"},
        "formats": {"f": {"text": "About {alt}.", "image": False}},
    }
    for key, value in changes.items():
        configs.assign(tree, key.replace("__", "."), value)
    return tree


def config(tars: Path, **changes: Any) -> GenerateConfig:
    return configs.structured(GenerateConfig, tree_of(tars, **changes), "test")


def rows_of(operator: GenerateOperator) -> dict[str, Row]:
    """Every row of the first shard by key; their values fit the column."""
    items = [item for item in operator.read(operator.plan()[0]) if isinstance(item, Item)]
    todo = list(items)
    rows: list[Row] = []
    while len(rows) < len(items):
        while todo and operator.want() > 0:
            operator.put(todo.pop(0))
        rows += operator.poll(0.1)
    assert sorted(row.index for row in rows) == list(range(len(items)))
    for name, kind in operator.column().fields:
        pa.array([row.values.get(name) for row in rows], kind)
    return {row.key: row for row in sorted(rows, key=lambda row: row.index)}


def written(given: GenerateConfig, says: Any) -> tuple[dict[str, Row], Echo]:
    operator, engine = GenerateOperator(given), Echo(says)
    operator._engine = engine
    return rows_of(operator), engine


def served(given: GenerateConfig) -> dict[str, Row]:
    operator = GenerateOperator(given)
    operator.setup("cpu")
    try:
        return rows_of(operator)
    finally:
        operator.close()


def folder_column(folder: Path, **columns: list[Any]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    keys = [f"{number:08d}" for number in range(SAMPLES)]
    pq.write_table(pa.table({"key": keys, **columns}), folder / "0.parquet")
    return {"folder": str(folder)}


def world(number: int) -> shapes.Sample:
    return shapes.sample(5, number, side=48)


def test_image_and_text_go_to_a_server_and_come_back_typed(tars: Path, url: str) -> None:
    rows = served(config(
        tars, writer__endpoint=url, writer__served_model="oracle/rating?wrong=0.2&unparsed=0.2&errors=0.1&seed=2",
        formats={"rate": {"text": "Rate this text from 1 to 5: {alt}", "system": "You are strict."}},
        parse__regex=r"Rating: (?P<rating>\d)", parse__types={"rating": "int"},
    ))  # fmt: skip
    unparsed = [row for row in rows.values() if row.reason == "answer: unparsed"]
    assert 2 <= len(unparsed) <= 16 and all(
        row.status == "skipped" and row.values["caption"] == "Hm." for row in unparsed
    )
    rated = [row for row in rows.values() if row.status == "ok"]
    assert len(rated) + len(unparsed) == SAMPLES and {row.values["rating"] for row in rated} <= {1, 2, 3, 4, 5}
    for row in rated:
        assert row.values["caption"] == f"Rating: {row.values['rating']}"
        number = int(row.key)
        assert row.values["text"] == world(number).alt
        assert row.values["image_sha256"] == hashlib.sha256(shapes.files(world(number))["png"]).hexdigest()


def test_a_columns_answers_need_no_tar(tars: Path, url: str, tmp_path: Path) -> None:
    claims = [shapes.caption(world(n).scene if n % 4 else world(n + 1).scene) for n in range(SAMPLES)]
    given = folder_column(tmp_path / "claims", claim=claims, key2=[f"{n:08d}" for n in range(SAMPLES)])
    rows = served(config(
        tars, writer__endpoint=url, writer__served_model="oracle/verdict", parse__verdict=["yes", "no", "unsure"],
        data__columns={"claim": {**given, "field": "claim"}, "id": {**given, "field": "key2"}},
        formats={"check": {"text": "Picture {id}. Is this right? {claim}", "image": False}},
    ))  # fmt: skip
    for number, row in enumerate(rows.values()):
        right = shape_claims.judge(claims[number], world(number).scene)
        assert row.values["verdict"] == ("yes" if right.correct else "no"), row
        assert row.values["image_sha256"] is None and row.values["text"] is None
    assert {row.values["verdict"] for row in rows.values()} == {"yes", "no"}


def test_formats_all_and_samples_on_a_server(tars: Path, url: str) -> None:
    given = config(
        tars, writer__endpoint=url, writer__served_model="oracle/fuse", choose="all", writer__decoding="sample",
        writer__samples=2,
        formats={"a": {"text": "Sentence 1: {alt}\n"}, "b": {"text": "Sentence 1: B {alt}\n", "max_tokens": 3}},
    )  # fmt: skip
    rows = served(given)
    for number, row in enumerate(rows.values()):
        true = shapes.caption(world(number).scene)
        assert row.values["format"] == "a" and row.values["caption"].startswith(true)
        assert [other["format"] for other in row.values["alternatives"]] == ["a#1", "b", "b#1"]
        assert [other["finish"] for other in row.values["alternatives"]] == ["stop", "length", "length"]


def test_columns_that_say_nothing(tars: Path, tmp_path: Path) -> None:
    syn = [None if n % 5 == 0 else "" if n % 5 == 1 else f"syn {n}" for n in range(SAMPLES)]
    tags = [["a", " b "] if n % 2 else [] for n in range(SAMPLES)]
    columns = {"alt": {"member": "txt"}, "syn": {**folder_column(tmp_path / "c", syn=syn, tags=tags), "field": "syn"}}
    columns["tags"] = {**columns["syn"], "field": "tags"}
    forms = {"f": {"text": "{syn} [[with {tags}]]", "image": False}}
    rows, engine = written(config(tars, data__columns=columns, formats=forms), lambda r: Caption(0, "x", 1, "stop"))
    for number, row in enumerate(rows.values()):
        expected = ("skipped", "text: missing", "column syn") if number % 5 < 2 else ("ok", "", "")
        assert (row.status, row.reason, row.detail) == expected
    assert [request.texts["tags"] for request in engine.seen][:2] == [(), ("a", " b ")]
    forms["f"]["otherwise"] = "alt"
    rows, engine = written(config(tars, data__columns=columns, formats=forms), lambda r: Caption(0, "x", 1, "stop"))
    for number, row in enumerate(rows.values()):
        assert row.status == "ok" and row.values["caption"] == (world(number).alt if number % 5 < 2 else "x")
        assert row.reason == ("copied: alt" if number % 5 < 2 else "")
    assert len(engine.seen) == SAMPLES * 3 // 5


def test_equal_requests_are_made_once(tars: Path, tmp_path: Path) -> None:
    columns = {"syn": {**folder_column(tmp_path / "c", syn=[f"s{n % 4}" for n in range(SAMPLES)]), "field": "syn"}}
    forms = {"f": {"text": "{syn}", "image": False}}

    def says(request: Request) -> Caption:
        return Caption(0, f"of {request.texts['syn']}", 2, "stop")

    rows, engine = written(config(tars, data__columns=columns, formats=forms), says)
    assert len(engine.seen) == 4
    assert [row.values["caption"] for row in rows.values()] == [f"of s{n % 4}" for n in range(SAMPLES)]
    for changes in ({"writer__decoding": "sample"}, {"formats": forms | {"g": {"text": "g {syn}", "image": False}}}):
        _, engine = written(config(tars, **({"data__columns": columns, "formats": forms} | changes)), says)
        assert len(engine.seen) == SAMPLES


def test_sides_are_shuffled_and_told(tars: Path, tmp_path: Path) -> None:
    given = folder_column(tmp_path / "c", a=[f"a{n}" for n in range(SAMPLES)], b=[f"b{n}" for n in range(SAMPLES)])
    columns = {name: {**given, "field": name} for name in "ab"}
    forms = {"arena": {"text": "1: {a}\n2: {b}", "image": False, "order": ["a", "b"]}}
    rows, _ = written(
        config(tars, data__columns=columns, formats=forms), lambda r: Caption(0, "1", 1, "stop", format="arena")
    )
    orders = Counter(tuple(row.values["order"]) for row in rows.values())
    assert set(orders) == {("a", "b"), ("b", "a")} and min(orders.values()) > SAMPLES // 5


def test_answers_are_cleaned_and_leaks_counted(tars: Path) -> None:
    said = {"0": "This image displays: a cat.", "1": "Real-World facts.", "2": '{"n": "three"}', "3": "a\ud800"}
    given = config(tars, clean__strip=["this image displays:"], clean__leaks=["real-world"])
    rows, _ = written(given, lambda r: Caption(0, said.get(r.key[-1], "fine"), 1, "stop"))
    assert rows["00000000"].values["caption"] == "A cat." and rows["00000000"].status == "ok"
    leaked = rows["00000001"]
    assert (leaked.status, leaked.reason) == ("skipped", "answer: leaks the prompt")
    assert leaked.values["caption"] == "Real-World facts." and rows["00000003"].values["caption"] == "a?"
    rows, _ = written(
        config(tars, parse__json={"n": "int"}, choose="all", formats={"f": {"text": "x"}, "g": {"text": "y"}}),
        lambda r: Caption(
            0, '{"n": 1}' if r.key[-1] == "0" else said["2"], 1, "stop", format="f",
            alternatives=(Caption(0, "no", format="g"), Caption(0, '{"n": 7}', format="g")),
        ),
    )  # fmt: skip
    assert (rows["00000002"].reason, rows["00000002"].detail) == ("answer: unparsed", 'n is "three", expected int')
    assert rows["00000002"].values["caption"] == said["2"] and rows["00000010"].values["n"] == 1
    assert [other.get("n") for other in rows["00000010"].values["alternatives"]] == [None, 7]


def test_identity_is_what_is_read_and_asked(tars: Path, tmp_path: Path) -> None:
    def column(name: str, identity: str) -> dict[str, str]:
        (tmp_path / name).mkdir(exist_ok=True)
        table = pa.table({"key": ["00000000"], "syn": ["s"]}).replace_schema_metadata({"identity": identity})
        pq.write_table(table, tmp_path / name / "0.parquet")
        return {"folder": str(tmp_path / name), "field": "syn"}

    def identity(**changes: Any) -> str:
        given = {"formats": {"f": {"text": "{syn}", "image": False}}, **changes}
        job = {"name": "x", "cluster": {"kind": "local"}, "operator": "recap.generate.operator.GenerateOperator"}
        made = configs.check({**job, **tree_of(tars, **given)}, "test")
        return configs.identity(made, made.operator())

    one, moved, other = (column(name, made) for name, made in (("one", "aaaa"), ("moved", "aaaa"), ("other", "bbbb")))
    first = identity(data__columns={"syn": one})
    assert first == identity(data__columns={"syn": moved}) != identity(data__columns={"syn": other})
    example = tmp_path / "examples.jsonl"
    with_examples = {
        "data__columns": {"syn": one},
        "formats": {"f": {"text": "{examples}{syn}", "image": False, "examples": {"file": str(example), "count": 1}}},
    }
    example.write_text('{"source": "a", "target": "b"}\n')
    before = identity(**with_examples)
    example.write_text('{"source": "a", "target": "c"}\n')
    assert identity(**with_examples) != before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"formats": {}}, "`formats`: there are none"),
        ({"choose": "some"}, "Write one or all"),
        (
            {"formats": {"f": {"text": "{syn}", "image": False}}},
            r"`formats.f`: column 'syn' is not among data.columns \(alt",
        ),
        ({"formats": {"f": {"text": "{alt}", "image": False, "otherwise": "syn"}}}, "column 'syn' is not among"),
        (
            {"formats": {"f": {"text": "{alt}", "image": False, "otherwise": "alt"}}, "parse": {"lines": True}},
            "is not parsed",
        ),
        ({"parse": {"json": {"caption": "string"}}}, "a field 'caption' is in every column"),
        ({"parse": {"verdict": ["yes"]}}, "two different words"),
        (
            {"writer__backend": "native", "writer__model": "m"},
            r"config: formats.f.budget = \{\}: column alt has no bound",
        ),
        ({"writer__served_model": ""}, "config: writer.endpoint"),
        ({"formats": {"f": {"text": "{examples}", "examples": {"file": "none"}}}}, "cannot be read"),
    ],
)
def test_what_cannot_work_is_said_at_launch(tars: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateOperator(config(tars, **changes))
