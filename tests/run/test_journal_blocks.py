"""Blocks of the journals as columns: the same as line by line, whatever a line looks like."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpc.run import journal_blocks
from hpc.run.journal_reader import JournalReader


def block(t: float, shard: str, start: int, **more: Any) -> dict[str, Any]:
    facts = {"t": t, "event": "segment", "shard": shard, "g": 0, "e": 0, "engine": 1, "start": start}
    return facts | {"counts": {"ok": 4, "skipped": 1}, "adopted": False} | more


def line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def random_lines(chance: random.Random) -> list[bytes]:
    """Of two engines' work on five shards: some adopted, of earlier versions, torn, or of another form."""
    made = [line({"t": 1000.0, "event": "claim", "shard": "s0", "g": 0, "e": 0, "engine": 0})]
    for number in range(60):
        event = block(1001.5 + 97 * number, f's{number % 5}"é', 512 * (number // 5), engine=number % 2)
        event["adopted"] = chance.random() < 0.2
        event["counts"] = {"ok": chance.randrange(9), "failed": chance.randrange(3)}
        if chance.random() < 0.1:
            del event["engine"], event["e"]
        if chance.random() < 0.1:
            event = dict(sorted(event.items(), reverse=True))
        whole = line(event)
        made.append(whole[: chance.randrange(1, len(whole))] + b"\n" if chance.random() < 0.1 else whole)
    return made


def facts(folder: Path, over: set[str]) -> dict[str, Any]:
    reader = JournalReader(folder)
    reader.refresh(lambda shard, generation, event: shard in over)
    return {**reader.dump(), "over_time": reader.over_time()} | {"offsets": None}


@pytest.mark.parametrize("seed", range(4))
def test_columns_say_what_lines_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    for journal in range(3):
        lines = random_lines(chance)
        lines.insert(30, line({"t": 2000.0, "event": "done", "shard": 's1"é', "g": 0, "counts": {}}))
        (tmp_path / f"sub-{journal:04d}-0.jsonl").write_bytes(b"".join(lines))
    together = facts(tmp_path, over={'s1"é'})

    def damaged(*arguments: object) -> None:
        raise ValueError

    monkeypatch.setattr(journal_blocks.BlockParser, "_parse_usual", damaged)  # all go through the JSON parser
    singly = facts(tmp_path, over={'s1"é'})
    for found in (together, singly):
        found["partial"] = [row for row in found["partial"] if row[0] != 's1"é']  # over: kept or not, nobody asks
    assert together == singly and len(together["partial"]) >= 4
    assert sum(n for _, _, n in together["over_time"]) > 100


def test_what_an_owner_has_saved_is_what_it_says_itself(tmp_path: Path) -> None:
    """It names what it adopts; what the one before it saves meanwhile counts no more, in whatever order."""
    zombie = [block(10, "a", 0), block(20, "a", 512), block(99, "a", 1024)]
    successor = [block(50, "a", 0, e=1, adopted=True), block(60, "a", 512, e=1), block(70, "a", 512, e=1)]
    for names in (("sub-0000-0", "sub-0001-0"), ("sub-0001-0", "sub-0000-0")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name, events in zip(names, (zombie, successor), strict=True):
            (folder / f"{name}.jsonl").write_bytes(b"".join(map(line, events)))
        reader = JournalReader(folder)
        reader.refresh()
        [saved] = reader.partial.values()
        assert saved.epoch == 1 and {start: Counter(c).total() for start, c in saved.blocks.items()} == {0: 5, 512: 10}
