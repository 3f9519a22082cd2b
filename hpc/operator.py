"""The interface between the cluster side (`hpc`) and the work (`recap`): all that a worker knows of what it does.

A config names an operator by its dotted path (`operator: recap.caption.operator.CaptionOperator`). Its module must
import without torch, since login nodes plan, describe and identify with it; `setup` loads what is heavy.

One operator object lives in one engine process and sees one endless stream of items that crosses shard borders:

    for item in operator.read(shard):          # in a reader thread
        while operator.want() == 0:
            rows += operator.poll(timeout)      # any order
        operator.put(item)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from hpc.base.dotted import load
from hpc.base.errors import UserError
from hpc.base.underfilled import Underfilled

if TYPE_CHECKING:
    import pyarrow as pa

OK, SKIPPED, FAILED, QUARANTINED = "ok", "skipped", "failed", "quarantined"
STATUSES = (OK, SKIPPED, FAILED, QUARANTINED)
LOST = "input: "
"""How the reason of a failed row begins whose sample the input no longer holds: there the work did not fail."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file.

    id: stable name, made from the path relative to the data's root; unique in a plan, safe as a file name.
    uri: where to read it. bytes, etag: size and version seen when planned. expected: samples, None if unknown.
    """

    id: str
    uri: str
    bytes: int
    etag: str = ""
    expected: int | None = None


class MissingShards(UserError):
    """Raised by `plan` where shards that the config names do not exist. With --allow-missing they are planned all
    the same and recorded as failed."""

    ETAG = "missing"  # of a planned shard that was not there

    def __init__(self, what: str, found: list[Shard], missing: list[Shard]) -> None:
        super().__init__(
            f"plan: {what}: {len(missing):,} of {len(found) + len(missing):,} shards do not exist "
            f"(first: {missing[0].uri}). Nothing was submitted. --allow-missing records them as failed."
        )
        self.found, self.missing = found, missing


@dataclass(frozen=True, slots=True)
class Item:
    """One sample of a shard, in the shard's order: `index` counts from 0 without gaps. Payload is the operator's.

    size: bytes that the payload takes in memory; they bound how much is read ahead. lost: `LOST` and a phrase where the
    input holds nothing of the sample but its place and key; it becomes a failed row without the operator.
    """

    shard: str
    index: int
    key: str
    payload: Any = None
    size: int = 0
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Damage:
    """Yielded by `read` after the last readable item of a structurally damaged shard."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one item. `reason` is a short fixed phrase (it is grouped), "" when status is "ok".

    transient: a second try may succeed; the engine retries such an item before it counts as failed.
    values: the column's own fields; a missing one is null.
    """

    shard: str
    index: int
    key: str
    status: str = OK
    reason: str = ""
    detail: str = ""
    transient: bool = False
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A named column: one parquet file per shard. `fields` are the operator's own, between `key` and `status`."""

    name: str
    fields: list[tuple[str, pa.DataType]]


class Operator(Protocol):
    """What every operator has; see the module's text, and below for what some have. It is constructed with its
    validated `Config`, which must be cheap: `setup` loads what is heavy.
    """

    Config: ClassVar[type]  # dataclass; fields with metadata {"execution": True} do not enter the identity
    version: ClassVar[int]  # raised by hand when the code changes what it writes
    by_rule: ClassVar[frozenset[str]]  # reasons of rows that a rule of the config drops, by design. May be left out
    changes: ClassVar[dict[int, str]]  # what each version changed, to explain why an old run is refused. Optional, too

    def __init__(self, config: Any) -> None: ...

    def continues(self, planned: Iterable[Shard]) -> None:
        """Called before `plan` where the run exists already, with its shards so far: their ids must not change."""

    def plan(self) -> list[Shard]:
        """The shards that the config names. Raises MissingShards, or UserError for other mistakes in the input."""

    def identity(self) -> dict[str, Any]:
        """What makes the output besides the config's semantic fields: digests of weights, tokenizer, ..."""

    def describe(self) -> list[tuple[str, str]]:
        """(label, text) lines for a dry run."""

    def made_by(self) -> dict[str, Any]:
        """What writes the column, for people: where a model lies, a server and what it says of itself. It stands in
        every marker, so it holds no secret, and is no part of the identity.
        """

    def column(self) -> Column:
        """The column that this operator writes."""

    def preflight(self) -> list[str]:
        """What this node lacks for the work (an unreadable model, ...); asked before `setup`, must be quick."""

    def setup(self, device: str) -> None:
        """Load models onto `device` ("cpu" or "cuda"). The engine claims no shard before this returned."""

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        """The shard's items in order. Runs in a reader thread. Raises ShardError or OSError if it cannot be read."""

    def want(self) -> int:
        """How many items `put` would take now."""

    def put(self, item: Item) -> None:
        """Take an item, of those that `want` allows. Must not wait for the result."""

    def poll(self, timeout: float) -> list[Row]:
        """Rows that are finished, in any order; waits for one at most `timeout` seconds."""

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        """A row for an item that is not to be applied (it killed the engine twice)."""

    def close(self) -> None:
        """Release what `setup` holds. Called once, after an error too."""

    def next_steps(self, run: str) -> list[str]:
        """Commands that show or use what a finished run has made, for the end of a launch."""


# What some operators can do beside that. One that has the methods of a protocol is used for what it describes.


@runtime_checkable
class FreezesInput(Protocol):
    """Plans from something that may change, such as a listing of a folder, and keeps it in files of the run."""

    def keep_in(self, folder: Path) -> None:
        """Called before `plan`, which writes nothing: the folder in which these files will lie."""

    def freeze(self, folder: Path) -> None:
        """Write those files that are not there yet. Called when the launch is recorded."""


@runtime_checkable
class ReadsOtherRuns(Protocol):
    """Reads what other runs have made. One process, the launch, looks where that lies, for all workers of the run."""

    def survey(self, folder: Path, shards: Sequence[Shard]) -> dict[str, str]:
        """Write into files in `folder` where the data for these shards lies. Returns their names by what they are of
        (a column); a name holds the digest of the file. Called when a launch or a rerun is recorded.
        """

    def surveyed(self, folder: Path, names: Mapping[str, str], shard: str = "") -> None:
        """Called in a worker before anything is read, with what `survey` returned. With `shard`, it is for that shard
        alone: what the rerun found that reopened it.
        """


@runtime_checkable
class ReadsBlocks(Protocol):
    """Can read a block, 512 consecutive samples of a shard, without what lies before it: pilots draw such blocks."""

    def block_counts(self, shards: Sequence[Shard]) -> Mapping[str, Sequence[int]]:
        """Samples of each block, by shard id; shards whose blocks cannot be read alone are left out."""

    def read_blocks(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Item | Damage]:
        """The samples of these blocks, as `read` gives them."""


@runtime_checkable
class NotesInput(Protocol):
    """Its reading finds out what later readers of the input need, such as where a shard's blocks lie."""

    def noted(self, shard: str) -> dict[str, Any]:
        """What stands in the marker of a shard that `read` has just come to the end of: JSON, some kilobytes at most.
        Called in the thread that reads.
        """


@runtime_checkable
class CountsStarvation(Protocol):
    """Takes samples before they are decoded, or many at a time, and so knows itself how long it lacked input."""

    def starved_s(self) -> float:
        """Seconds until now that were lost for want of input: all of those in which the work stood still, and of those
        in which it did less at once than it could, the part that was lost. It never falls.
        """


@runtime_checkable
class KnowsItsGpus(Protocol):
    """Its engines may have several GPUs (cluster.gpus_per_engine)."""

    def one_gpu(self) -> str:
        """Why an engine with this config uses one GPU at most; "" where it uses all that it sees."""


@runtime_checkable
class Waits(Protocol):
    """Its work may wait for a service elsewhere."""

    def waiting(self) -> str:
        """What all samples wait for now, such as a server that is away; "" where they wait for nothing."""


@runtime_checkable
class LimitsWaits(Protocol):
    """One sample may wait for a service, for a time that the config says."""

    def longest_wait(self) -> tuple[float, str]:
        """(seconds that a sample may wait before the service counts as away, the config's key that says so)."""


@runtime_checkable
class LimitsSetup(Protocol):
    """`setup` may start a service, which takes a time that the config says."""

    def longest_setup(self) -> tuple[float, str]:
        """(seconds that `setup` may take, the config's key that says so)."""


def noted_of(operator: Operator, shard: str) -> dict[str, Any]:
    """What an operator has noted of a shard that it has read to its end, {} of one that notes nothing."""
    return operator.noted(shard) if isinstance(operator, NotesInput) else {}


def waits_for(operator: Operator) -> str:
    """What all samples of an operator wait for now, "" where they wait for nothing."""
    return operator.waiting() if isinstance(operator, Waits) else ""


def starved_s(operator: Operator) -> float:
    """Seconds that an operator has lost for want of input, 0.0 of one that does not count them."""
    return operator.starved_s() if isinstance(operator, CountsStarvation) else 0.0


class Batched:
    """want/put/poll for operators that are a function from a list of items to a list of rows.

    Subclasses set `batch_size` and define `apply(items) -> rows`.
    """

    batch_size: int = 64

    def __init__(self) -> None:
        self._waiting: list[Item] = []
        self._fill = Underfilled()

    def continues(self, planned: Iterable[Shard]) -> None: ...

    def made_by(self) -> dict[str, Any]:
        return {}

    def preflight(self) -> list[str]:
        return []

    def apply(self, items: list[Item]) -> list[Row]:
        raise NotImplementedError(f"{type(self).__name__} must define apply(items)")

    def want(self) -> int:
        return self.batch_size - len(self._waiting)

    def put(self, item: Item) -> None:
        self._waiting.append(item)

    def poll(self, timeout: float) -> list[Row]:
        if not self._waiting:
            return []
        batch, self._waiting = self._waiting, []
        begun = time.monotonic()
        rows = self.apply(batch)
        spent = len(batch), time.monotonic() - begun
        self._fill.took(*spent)
        if len(batch) < self.batch_size:
            self._fill.short(*spent)
        return rows

    def starved_s(self) -> float:
        return self._fill.lost_s(self.batch_size)

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        return Row(item.shard, item.index, item.key, status, reason)

    def close(self) -> None: ...

    def next_steps(self, run: str) -> list[str]:
        """Commands that show or use what a finished run has made, for the end of a launch."""
        return []


def load_operator(path: str) -> type[Operator]:
    """The operator class of a dotted path; UserError when it does not import."""
    return load(path, "config: `operator`", "recap.caption.operator.CaptionOperator")
