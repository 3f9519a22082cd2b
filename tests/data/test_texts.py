"""Texts of samples: encodings, and keys inside JSON members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import UserError
from recap.caption.operator import CaptionConfig
from recap.data.block_items import IndexedDataConfig
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.texts import TextMember, decoded
from recap.engine import CaptionerConfig
from recap.worlds.tars import write_tar
from tests.support.instant import InstantOperator

UTF16, NOT_UTF8 = "text: UTF-16 (converted)", "text: not UTF-8 (kept as replaced)"


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        ("\ufeffa flag".encode(), "a flag", ""),
        ("\ufeff\ufeffa".encode(), "\ufeffa", ""),
        ("a flag".encode("utf-16"), "a flag", UTF16),
        ("a flag".encode("utf-16-le"), "a flag", UTF16),
        ("a flag".encode("utf-16-be"), "a flag", UTF16),
        ("a flag".encode("utf-32"), "a flag", "text: UTF-32 (converted)"),
        ("Fähnchen 旗".encode("utf-16-le"), "Fähnchen 旗", UTF16),
        (b"a\0b", "a\0b", ""),
        (b"a\0", "a\0", ""),
        (b"\0\0\0\0", "\0\0\0\0", ""),
        (b"", "", ""),
        (b"\xff\xfe\0\xd8", None, NOT_UTF8),  # half a pair of surrogates
        (b"caf\xe9", "caf\ufffd", NOT_UTF8),
    ],
)
def test_encodings(data: bytes, text: str | None, note: str) -> None:
    found, odd = decoded(data)
    assert odd == note
    assert text is None or found == text


def test_long_texts_are_cut_in_any_encoding() -> None:
    for encoding in ("utf-8", "utf-16-le"):
        text, note = decoded(("ä b" * 1000).encode(encoding), longest=100)
        assert text == ("ä b" * 1000)[:100]
        assert note in ("text: cut at 100 characters", UTF16)


CASES: list[tuple[Any, str, str | None, str]] = [
    ({"caption": "a red flag"}, "json.caption", "a red flag", ""),
    ({"caption": ["one", "two"]}, "json.caption", "one\ntwo", ""),
    ({"caption": ["one", "two"]}, "json.caption.1", "two", ""),
    ({"a": {"b": ["x", {"c": "deep"}]}}, "json.a.b.1.c", "deep", ""),
    ({"caption": None}, "json.caption", None, "text: missing"),
    ({"other": 1}, "json.caption", None, "text: missing"),
    ("just a string", "json.caption", None, "text: missing"),
    ({"caption": 7}, "json.caption", None, "text: neither a string nor a list of strings"),
    ({"caption": []}, "json.caption", None, "text: neither a string nor a list of strings"),
    ({"Caption": "kept as it is spelled"}, "json.Caption", "kept as it is spelled", ""),
    ({"caption": "\ud800"}, "json.caption", "?", ""),
    ({"caption": "whole"}, "json", '{"caption": "whole"}', ""),
]


@pytest.mark.parametrize(("content", "spec", "text", "note"), CASES)
def test_keys_inside_json(content: Any, spec: str, text: str | None, note: str) -> None:
    assert TextMember.named(spec).read({"json": json.dumps(content).encode()}) == (text, note)


@pytest.mark.parametrize("data", [b"{", b"[" * 200_000, b"\xff{}"])
def test_damaged_json(data: bytes) -> None:
    assert TextMember.named("json.caption").read({"json": data}) == (None, "text: in damaged JSON")


def test_a_column_reads_the_same_texts() -> None:
    members = [{"json": json.dumps({"caption": c}).encode()} for c in ("\ufeffone", ["a", "b"], 3, None)]
    for config in (ColumnConfig(member="json", field="caption"), ColumnConfig(member="json.caption")):
        column = open_column("text", config)
        assert column.read(None, 0, list("abcd"), members).values == ["one", "a\nb", 3, None]  # type: ignore[arg-type]


def test_a_key_that_the_first_shard_has_not_is_named_when_planned(tmp_path: Path) -> None:
    with open(tmp_path / "0.tar", "wb") as file:
        write_tar(file, [(str(n), {"jpg": b"1", "json": b'{"title": "x", "url": "y"}'}) for n in range(3)])

    def plan(text: str) -> int:
        data = IndexedDataConfig(shards=[f"{tmp_path}/0.tar"], text=text)
        return len(InstantOperator(CaptionConfig(data=data, captioner=CaptionerConfig(model="instant"))).plan())

    assert plan("json.title") == plan("txt") == plan("json") == 1
    with pytest.raises(UserError, match=r"none of the first 3 samples .* under caption in its json .* title, url"):
        plan("json.caption")
    with pytest.raises(UserError, match="They have no such member"):
        plan("meta.json.caption")
