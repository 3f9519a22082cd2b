"""Lists of prompts, as people have them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import ShardError, UserError
from recap.dit.prompts import Prompts, PromptsConfig


def prompts_of(path: Path, **settings: Any) -> list[tuple[str, str, str]]:
    found = Prompts(PromptsConfig(file=str(path), **settings))
    return [(p.key, p.text, p.problem) for shard in found.shards(1) for p in found.of(shard)]


def test_prompt_lists(tmp_path) -> None:
    two = [("k1", "a car", ""), ("k2", "", "prompt: empty")]
    (tmp_path / "a.txt").write_bytes("\ufeffa car\r\n  \nfrüh".encode() + b"\n\xff\n")
    assert prompts_of(tmp_path / "a.txt") == [
        ("000001", "a car", ""), ("000002", "", "prompt: empty"), ("000003", "früh", ""),
        ("line-000004", "", "prompt: not UTF-8"),
    ]  # fmt: skip
    (tmp_path / "a.tsv").write_text("key\tprompt\nk1\ta car\nk2\t\nno tab")
    assert prompts_of(tmp_path / "a.tsv") == [*two, ("line-000004", "", "prompt: no key and tab before it")]
    lines = ['{"key": "k1", "text": "a car"}', '{"key": "k2", "text": " "}', '{"key": 3, "text": null}', "{", "{}"]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, r'{"key": "k6", "text": "\ud800"}']))
    assert prompts_of(tmp_path / "a.jsonl", field="text") == [
        *two, ("3", "", "prompt: not a text"), ("line-000004", "", "prompt: not a JSON object"),
        ("line-000005", "", "prompt: no key, or no text"), ("line-000006", "", "prompt: not a JSON object"),
    ]  # fmt: skip
    table = pa.table({"key": ["k1", "k2", "k3"], "prompt": ["a car", "", "x"], "status": ["ok", "ok", "failed"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert prompts_of(tmp_path / "a.parquet") == [*two, ("k3", "", "prompt: missing")]
    assert prompts_of(tmp_path / "a.parquet", first=1) == two[:1]


def test_prompt_lists_that_are_refused(tmp_path) -> None:
    (tmp_path / "a.tsv").write_text("k1\ta car\nk2\ta flag\nk1\ta star\n")
    (tmp_path / "empty.txt").write_text("")
    pq.write_table(pa.table({"key": ["1"], "text": ["a"]}), tmp_path / "a.parquet")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"file": "a.tsv"}, r"key 'k1' is in line 1 and again in line 3"),
        ({"file": "empty.txt"}, "holds no prompt"),
        ({"file": "none.txt"}, "there is no such file"),
        ({"file": "a.parquet"}, "no field 'prompt'. It has key, text: set prompts.field"),
        ({"file": "empty.csv"}, "no such file"),
        ({}, "one of prompts.file and prompts.run"),
    ]
    for config, message in cases:
        if "file" in config:
            config["file"] = str(tmp_path / config["file"])
        with pytest.raises(UserError, match=message):
            Prompts(PromptsConfig(**config))


def test_thirty_thousand_prompts(tmp_path) -> None:
    path = tmp_path / "coco.tsv"
    path.write_text("".join(f"{i:012d}\ta photograph of thing {i}\n" for i in range(30_000)))
    start = time.process_time()
    found = Prompts(PromptsConfig(file=str(path)))
    shards = found.shards(images=2)
    assert time.process_time() - start < 2
    assert [s.id for s in shards] == [f"prompts-{n:06d}" for n in range(30)] and {s.expected for s in shards} == {2000}
    assert len({s.etag for s in shards}) == 30
    path.write_text(path.read_text().replace("thing 1500\n", "another\n"))
    changed = Prompts(PromptsConfig(file=str(path)))
    assert changed.of(shards[0]) == found.of(shards[0])
    with pytest.raises(ShardError, match="changed since the launch"):
        changed.of(shards[1])
