"""Who owns which shard, and which are finished: a directory of small files whose names are the state.

    <bucket>/<id>.g<G>.e<k>        claim: epoch k of generation G, made by link(), never deleted; highest k owns
    <bucket>/<id>.g<G>.e<k>.end    how that epoch ended: released, failed (with fingerprint), died (with keys in flight)
    <bucket>/<id>.g<G>.done        the idempotency marker (JSON)
    <bucket>/<id>.g<G>.failed      terminal failure (JSON)

A generation is a fresh start that a rerun grants; inside a generation "done" beats "failed". Nothing is ever
removed, so no process can break another's lock, and an epoch number is a fencing token: it is checked again before
publishing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.base.errors import UserError
from hpc.operator import Shard

BUCKETS = 1024  # about a thousand names in a directory at 300,000 shards
OPEN, CLAIMED, DONE, FAILED = "open", "claimed", "done", "failed"

_BUCKET = re.compile(r"[0-9a-f]{3}")
_NAME = re.compile(r"(?P<id>.+)\.g(?P<generation>[0-9]+)\.(?:e(?P<epoch>[0-9]+)(?P<end>\.end)?|(?P<mark>done|failed))")

_TERMINAL = re.compile(r"^(.+)\.g0\.(done|failed)$", re.MULTILINE)
_LATER = re.compile(r"\.g[1-9]\d*\.(?:e|done|failed)")


@lru_cache(maxsize=4096)
def bucket_of(shard_id: str) -> str:
    """The directory of a shard: a hash of its id, so that it stays when the plan grows."""
    return f"{int.from_bytes(hashlib.sha1(shard_id.encode()).digest()[:4]) % BUCKETS:03x}"


@dataclass(frozen=True, slots=True)
class State:
    """State of one shard. epoch: the highest claim of this generation (-1: none); ended: that claim has an end."""

    status: str = OPEN
    generation: int = 0
    epoch: int = -1
    ended: bool = False

    @property
    def terminal(self) -> bool:
        return self.status in (DONE, FAILED)


def states(names: Iterable[str], reopened: Mapping[str, int] | None = None) -> dict[str, State]:
    """The state of every shard that has a name here: a pure function of the set of names.

    Args:
        names: file names of a ledger directory, in any order, with or without foreign files among them.
        reopened: the generation that reruns have opened, by shard id. It counts where it is higher than any that a name
            has.
    """
    marks: dict[tuple[str, int], set[str]] = {}
    epochs: dict[tuple[str, int], int] = {}
    ends: set[tuple[str, int, int]] = set()
    generations: dict[str, int] = dict(reopened or {})
    seen: set[str] = set()
    for name in names:
        match = _NAME.fullmatch(name)
        if not match:
            continue
        shard, generation = match["id"], int(match["generation"])
        seen.add(shard)
        generations[shard] = max(generation, generations.get(shard, 0))
        at = (shard, generation)
        if match["mark"]:
            marks.setdefault(at, set()).add(match["mark"])
        elif match["end"]:
            ends.add((shard, generation, int(match["epoch"])))
        else:
            epochs[at] = max(int(match["epoch"]), epochs.get(at, -1))
    result = {}
    for shard in seen | set(reopened or ()):
        generation = generations[shard]
        at = (shard, generation)
        epoch = epochs.get(at, -1)
        ended = (shard, generation, epoch) in ends
        if DONE in marks.get(at, ()):
            status = DONE
        elif FAILED in marks.get(at, ()):
            status = FAILED
        else:
            status = CLAIMED if epoch >= 0 and not ended else OPEN
        result[shard] = State(status, generation, epoch, ended)
    return result


_DONE, _FAILED = State(DONE), State(FAILED)  # one object each: there may be a million


def settled_and_claimed(
    names: list[str], reopened: Mapping[str, int] | None = None
) -> tuple[dict[str, State], list[str]]:
    """(shards that are done or failed, with states that may lack their epoch; ids of claimed shards).

    The same as `states` says, but several times as quick where nothing was reopened: one regular expression over all
    names instead of one for each.
    """
    text = "\n".join(names)
    if reopened or _LATER.search(text):
        found = states(names, reopened)
        settled = {i: s for i, s in found.items() if s.terminal}
        return settled, [i for i, s in found.items() if s.status == CLAIMED]
    marks = _TERMINAL.findall(text)
    settled = {shard: _FAILED for shard, mark in marks if mark == "failed"}
    settled.update((shard, _DONE) for shard, mark in marks if mark == "done")
    left = states(n for n in names if n.rpartition(".g0.")[0] not in settled)
    return settled, [shard for shard, state in left.items() if state.status == CLAIMED]


@dataclass(frozen=True, slots=True)
class Claim:
    """Epoch `epoch` of generation `generation` of a shard, owned by whoever made its file."""

    shard: Shard
    generation: int
    epoch: int

    @property
    def stem(self) -> str:
        return f"{self.shard.id}.g{self.generation}.e{self.epoch}"


class Ledger:
    """The ledger of one identity, `<run>/ledger/<identity8>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, shard_id: str) -> Path:
        """Where the files of a shard lie."""
        return self.root / bucket_of(shard_id)

    def names(self, bucket: str) -> list[str]:
        try:
            return os.listdir(self.root / bucket)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def buckets(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.root) if _BUCKET.fullmatch(name))
        except FileNotFoundError:
            return []

    def survey(self, reopened: Mapping[str, int] | None = None) -> dict[str, State]:
        """The state of every shard that has a name in this ledger: one listing per bucket, no stat."""
        found: dict[str, State] = {shard: State(generation=g) for shard, g in (reopened or {}).items()}
        by_bucket = _by_bucket(reopened)
        for bucket in self.buckets():
            found.update(states(self.names(bucket), by_bucket.get(bucket)))
        return found

    def done(self, reopened: Mapping[str, int] | None = None) -> dict[str, int]:
        """Generations of the shards that are done: one listing per bucket."""
        by_bucket, found = _by_bucket(reopened), dict[str, int]()
        for bucket in self.buckets():
            settled, _ = settled_and_claimed(self.names(bucket), by_bucket.get(bucket))
            found.update((shard, state.generation) for shard, state in settled.items() if state.status == DONE)
        return found

    def outcome(self, ids: Iterable[str], reopened: Mapping[str, Mapping[str, int]]) -> Counter[str] | None:
        """How many of these shards are done and how many failed; None where one of them is neither. Stops at the first
        such shard. Memory holds one bucket at a time.

        Args:
            ids: shard ids in the order of a plan, that is, bucket by bucket.
            reopened: generation that reruns have opened, by bucket and shard id.
        """
        counts: Counter[str] = Counter()
        for bucket, shards in itertools.groupby(ids, bucket_of):
            here = states(self.names(bucket), reopened.get(bucket))
            for shard in shards:
                state = here.get(shard, State())
                if not state.terminal:
                    return None
                counts[state.status] += 1
        return counts

    def markers(self, ids: Iterable[str], reopened: Mapping[str, Mapping[str, int]]) -> Iterator[dict[str, Any]]:
        """The markers of those of these shards that are done, one after another; arguments as for `outcome`."""
        for bucket, shards in itertools.groupby(ids, bucket_of):
            here = states(self.names(bucket), reopened.get(bucket))
            for shard in shards:
                if (state := here.get(shard)) and state.status == DONE:
                    yield self.read(shard, f"g{state.generation}.done")

    def failed(self, reopened: Mapping[str, int] | None = None) -> dict[str, State]:
        """The state of each shard that has failed; quick where few buckets hold any."""
        found: dict[str, State] = {}
        by_bucket = _by_bucket(reopened)
        for bucket in self.buckets():
            names = self.names(bucket)
            if any(name.endswith(f".{FAILED}") for name in names):
                here = states(names, by_bucket.get(bucket))
                found.update((shard, state) for shard, state in here.items() if state.status == FAILED)
        return found

    def state(self, shard_id: str, reopened: Mapping[str, int] | None = None) -> State:
        """The state of one shard. Lists its bucket, a thousand names or two."""
        mine = [name for name in self.names(bucket_of(shard_id)) if name.startswith(f"{shard_id}.g")]
        opened = {shard_id: reopened[shard_id]} if reopened and shard_id in reopened else None
        return states(mine, opened).get(shard_id, State())

    def claim(self, claim: Claim, owner: str) -> bool:
        """Try to own a shard. False if that epoch exists already: somebody was faster."""
        directory = self.directory(claim.shard.id)
        atomic.make_below(directory, 2)
        return atomic.create(directory / claim.stem, _json({"owner": owner}))

    def owner(self, shard_id: str, generation: int, epoch: int) -> str:
        """The instance that made a claim."""
        return self.read(shard_id, f"g{generation}.e{epoch}").get("owner", "")

    def end(self, claim: Claim, how: str, **facts: Any) -> bool:
        """Record how an epoch ended: `how` is "released", "failed" (with reason, detail, log), "died" (with reason,
        in_flight, log) or "piloted" (with pilot). False where that was recorded before.
        """
        return atomic.create(self.directory(claim.shard.id) / f"{claim.stem}.end", _json({"how": how, **facts}))

    def ends(self, claim: Claim) -> list[dict[str, Any]]:
        """How the earlier epochs of this generation ended; {"how": "unexplained"} for one without an end."""
        found = []
        for epoch in range(claim.epoch):
            record = self.read(claim.shard.id, f"g{claim.generation}.e{epoch}.end")
            if not record:
                owner = self.owner(claim.shard.id, claim.generation, epoch)
                record = {"how": "unexplained", "owner": owner}
            found.append(record)
        return found

    def mark(self, claim: Claim, mark: str, record: dict[str, Any]) -> bool:
        """Set the terminal marker. False if this generation has that marker already."""
        name = f"{claim.shard.id}.g{claim.generation}.{mark}"
        return atomic.create(self.directory(claim.shard.id) / name, _json(record))

    def read(self, shard_id: str, suffix: str) -> dict[str, Any]:
        """The content of `<id>.<suffix>`, {} if there is none. A half-visible file (NFS) reads as {} too.

        Raises:
            UserError: the file may not be read.
        """
        path = f"{self.root}/{bucket_of(shard_id)}/{shard_id}.{suffix}"
        try:
            record = json.loads(_content(path))
        except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            return {}  # not JSON, or not even UTF-8: zeros after a machine's crash
        except PermissionError as error:
            raise UserError(
                f"{path} may not be read by this user. Ask its owner for the run's files to be readable "
                "(chmod -R g+rX), and try again."
            ) from error
        return record if isinstance(record, dict) else {}


def _content(path: str) -> bytes:
    """The bytes of a small file. This costs half of what pathlib and file objects do, for up to a million markers."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(file, 1 << 16), b""))
    finally:
        os.close(file)


def _by_bucket(reopened: Mapping[str, int] | None) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for shard, generation in (reopened or {}).items():
        found.setdefault(bucket_of(shard), {})[shard] = generation
    return found


def _json(record: dict[str, Any]) -> bytes:
    return atomic.as_json(record, sort_keys=True) + b"\n"
