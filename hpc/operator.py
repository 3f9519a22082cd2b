"""The seam between the cluster side (`hpc`) and the work (`recap`): all that a worker knows of what it does.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hpc.base.dotted import load
from hpc.base.errors import UserError
from hpc.base.underfilled import Underfilled

if TYPE_CHECKING:
    import pyarrow as pa

OK, SKIPPED, FAILED, QUARANTINED = "ok", "skipped", "failed", "quarantined"
STATUSES = (OK, SKIPPED, FAILED, QUARANTINED)
LOST = "input: "
"""What the reasons of failed rows begin with whose samples the input no longer holds: the work did not fail."""


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

    size: bytes that the payload holds in memory; what is read ahead is bounded by them. lost: why the input holds no
    more than the sample's place and key (`LOST` and a phrase): it is a failed row, and the operator is not asked.
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
    """See the module's text. Constructed with its validated `Config`; cheap until `setup`."""

    Config: ClassVar[type]  # dataclass; fields with metadata {"execution": True} do not enter the identity
    version: ClassVar[int]  # raised by hand when the code changes what it writes
    by_rule: ClassVar[frozenset[str]]  # reasons of rows that a rule of the config drops, by design. May be left out
    changes: ClassVar[dict[int, str]]  # by version, what it changed, for who is refused an old run. May be left out

    def __init__(self, config: Any) -> None: ...

    def continues(self, planned: Iterable[Shard]) -> None:
        """Told before `plan` where a run exists: its shards so far, whose ids must not change."""

    def plan(self) -> list[Shard]:
        """The shards that the config names. Raises MissingShards, or UserError for other mistakes in the input."""

    def identity(self) -> dict[str, Any]:
        """What makes the output besides the config's semantic fields: digests of weights, tokenizer, ..."""

    def describe(self) -> list[tuple[str, str]]:
        """(label, text) lines for a dry run."""

    def made_by(self) -> dict[str, Any]:
        """What writes the column, for people: a model's place, a server and what it says of itself. In every marker;
        no secrets, no part of the identity.
        """

    def column(self) -> Column: ...

    def preflight(self) -> list[str]:
        """What this node lacks for the work (an unreadable model, ...); asked before `setup`, must be quick."""

    def setup(self, device: str) -> None:
        """Load models onto `device` ("cpu" or "cuda"). The engine claims no shard before this returned."""

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        """The shard's items in order. Runs in a reader thread. Raises ShardError or OSError if it cannot be read."""

    def want(self) -> int: ...

    def put(self, item: Item) -> None: ...

    def poll(self, timeout: float) -> list[Row]: ...

    # Optional, for operators that freeze what they are planned from into files of the run (lists of a folder's images):
    #     keep_in(folder: Path): where these files are to lie; told before `plan`, which writes nothing
    #     freeze(folder: Path): write those that are new; asked when the launch is recorded
    #
    # Optional, for operators that read what other runs have made; one process looks where it lies, for all of the run:
    #     survey(folder: Path, shards) -> dict[str, str]: write down where, of these shards, into `folder`; the names of
    #     the files, which hold what they are the digest of. Asked when a launch or a rerun is recorded
    #     surveyed(folder: Path, names: dict[str, str], shard: str = ""): told what `survey` wrote, before anything is
    #     read; of a shard that a rerun has reopened, what that has found
    #
    # Optional, for operators that can read 512 samples of a shard (a block) without what lies before them, for pilots:
    #     block_counts(shards) -> dict[str, list[int]]: samples of each block, by shard, where that is so
    #     read_blocks(shard, numbers) -> Iterator[Item | Damage]: the samples of these, as `read` gives them
    #
    # Optional, for operators that take samples before these are ready, or many at a time:
    #     starved_s() -> float: seconds until now in which the work stood still for want of input, and the part of
    #     others for which it could have done more at once. It never falls
    #
    # Optional, for operators whose engines may have several GPUs (cluster.gpus_per_engine):
    #     one_gpu() -> str: why an engine uses one at most, as it is configured; "" where it uses all that it sees
    #
    # Optional, for operators whose work waits for a service elsewhere:
    #     waiting() -> str: what all samples wait for now (a server that is away), "" where there is nothing
    #     longest_wait() -> (seconds, config key): how long one sample may wait before that counts as away
    #     longest_setup() -> (seconds, config key): how long `setup` may take for one that it starts

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        """A row for an item that is not to be applied (it killed the engine twice)."""

    def close(self) -> None: ...

    def next_steps(self, run: str) -> list[str]:
        """Commands that show or use what a finished run has made, for the end of a launch."""


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
