"""Notes of where a shard's blocks lie, which a job over samples writes into the shard's marker after it read the shard
to its end. A training's index takes them from there, so that the corpus is not read a second time.

A note counts only for the file that the job was planned with: the same address, size and version (the ETag, on disks
the time of change). For other files, and without a note, the shard is scanned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from hpc.base.errors import UserError
from hpc.operator import Damage, Shard
from hpc.run.published import Published
from recap.data.blocks import BLOCK, Link, ShardBlocks
from recap.data.kind import Wanted
from recap.data.kinds import TAR, kind_of

_VERSION = 1  # raised where a kind of input finds other samples or blocks than before
_LARGEST = 1 << 16  # characters of a note: that of a million samples has about as many
_LISTS = ("first", "start", "count", "problems", "links", "origin", "skip")


def noted(blocks: ShardBlocks, wanted: Wanted) -> dict[str, Any]:
    """The note for a marker: the blocks of a shard that was read to its end. {} where they are not known, or where the
    note would be too large (all keys of a shard may be duplicates).

    Args:
        wanted: how the samples were read.
    """
    if not blocks.ended or len(blocks.problems) + len(blocks.links) > _LARGEST // 16:
        return {}
    facts: dict[str, Any] = {name: getattr(blocks, name) for name in _LISTS}
    facts |= {"version": _VERSION, "key": wanted.key, "damage": asdict(blocks.damage) if blocks.damage else None}
    text = _text(facts)
    return {"blocks": {**facts, "digest": _digest(text)}} if len(text) <= _LARGEST else {}


class NotedBlocks:
    """Reads the notes of several runs, of the newest identity of each. Thread-safe.

    Args:
        runs: in the order in which they are searched.
    """

    def __init__(self, runs: Iterable[Published]) -> None:
        self.runs = list(runs)

    def find(self, shard: Shard, wanted: Wanted) -> ShardBlocks | None:
        """The blocks of a shard, as a scan would find them now; None where no run has noted them of this very file."""
        if not (shard.bytes and shard.etag):
            return None  # nothing says that it is the same file
        for run in self.runs:
            if shard.id in run and (found := of_marker(_marker(run, shard.id), shard, wanted)):
                return found
        return None


def of_marker(marker: dict[str, Any], shard: Shard, wanted: Wanted) -> ShardBlocks | None:
    """What a marker notes of a shard; None where that is nothing, damaged, or of another file."""
    if marker.get("input") != {"uri": shard.uri, "bytes": shard.bytes, "etag": shard.etag}:
        return None
    try:
        facts = dict(marker["noted"]["blocks"])
    except (KeyError, TypeError, ValueError):
        return None
    digest = facts.pop("digest", "")
    if facts.get("version") != _VERSION or digest != _digest(_text(facts)):
        return None
    if facts["key"] != wanted.key and kind_of(shard.uri) is not TAR:
        return None  # the job has called the samples otherwise
    made = ShardBlocks(**{name: facts[name] for name in _LISTS}, ended=True)
    made.damage = Damage(**facts["damage"]) if facts["damage"] else None
    made.problems = [(number, problem) for number, problem in made.problems]
    made.links = [Link(*link) for link in made.links]
    return made


def _marker(run: Published, shard: str) -> dict[str, Any]:
    try:
        return run.marker(shard)
    except UserError:  # damaged; who reads the column says so
        return {}


def _text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(f"{BLOCK} {text}".encode()).hexdigest()[:16]
