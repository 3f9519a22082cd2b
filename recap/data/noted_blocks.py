"""Where a shard's blocks lie, as a job over its samples notes it by the way: in the marker of the shard, which it has
read to its end. A training's index takes it from there, and does not read the corpus a second time.

A note counts for exactly the file that the job was planned with: of the same address, size and version (the ETag, on
disks the time of change). Of any other, and where there is none, the shard is read.
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
    """For a marker: the blocks of a shard whose samples are through. {} where they are not known, or where the note
    would be large: all of a shard's keys may come back.

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
    """What the newest identities of runs have noted. Threads may ask side by side.

    Args:
        runs: those named first are asked first.
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
