"""A pilot: blocks from all over the plan, made before the rest, to see what the run will make before paying for it.

    <run>/pilot/<name>.json      what was drawn: the blocks of each shard
    <run>/segments/...           what was made of them, which the full run takes over: see hpc.run.segments
    <ledger>/<id>.g<G>.e<k>.end  {"how": "piloted", "pilot": <name>}: the blocks of this shard are saved

A block is 512 consecutive samples. Where the work can read one without what lies before it (`Operator.block_counts`),
each of a shard's blocks may be drawn, else only its first. Blocks are drawn in the order of a hash of shard and number:
over the same shards every run draws the same, and a larger pilot adds to a smaller one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hpc.base import atomic, damage, object_store
from hpc.base.errors import Exit, UserError
from hpc.operator import Damage, Item, MissingShards, Operator, ReadsBlocks, Shard
from hpc.run import column as columns
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE, FAILED, Ledger, State, bucket_of, states
from hpc.run.plan import Plan
from hpc.run.segments import Segments

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 512
SAVED = "piloted"  # how an epoch has ended whose owner has saved all blocks that the pilot has of its shard

Counts = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Pilot:
    """What was drawn.

    blocks: the numbers of a shard's blocks, rising, by shard id. samples: of all these blocks; an upper bound where
    `uncounted` of the shards drawn have an unknown count. first_only: shards of the plan of which only the first block
    could be drawn. plan: the name of a plan that holds the drawn shards alone.
    """

    blocks: dict[str, list[int]]
    samples: int
    first_only: int
    uncounted: int = 0
    plan: str = ""

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(self.blocks, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def count(self) -> int:
        """How many blocks it has."""
        return sum(len(numbers) for numbers in self.blocks.values())

    @property
    def about(self) -> str:
        """How many samples it has, for people."""
        return f"at most {self.samples:,}" if self.uncounted else f"{self.samples:,}"

    def described(self, shards: int) -> str:
        """What it is, for people. shards: how many the whole plan has."""
        said = f"{self.about} samples: {self.count:,} blocks of {BLOCK} in {len(self.blocks):,} shards of {shards:,}"
        if self.first_only:
            whose = "every shard" if self.first_only == shards else f"{self.first_only:,} shards"
            said += f"; of {whose} only the first block may be drawn (no index of their blocks)"
        return said


def draw(shards: Sequence[Shard], samples: int, counts: Counts) -> Pilot:
    """Draw whole blocks until they hold `samples` samples, or a few more. UserError where there are not so many.

    Args:
        counts: samples of each block by shard id, for shards whose blocks can be read alone (`Operator.block_counts`).
    """
    import numpy as np

    there = [shard for shard in shards if shard.etag != MissingShards.ETAG]
    sizes = [counts.get(shard.id) or _first(shard) for shard in there]
    first_only = sum(shard.id not in counts for shard in there)
    total = sum(map(sum, sizes))
    if samples > total:
        raise UserError(_too_many(samples, total, first_only))
    number = np.concatenate([np.arange(len(size), dtype=np.uint64) for size in sizes])
    of = np.repeat(np.arange(len(there)), [len(size) for size in sizes])
    seeds = np.array([int.from_bytes(hashlib.sha1(s.id.encode()).digest()[:8]) for s in there], np.uint64)
    order = np.argsort(_mixed(seeds[of] + number), kind="stable")
    reached = np.cumsum(np.concatenate(sizes)[order])
    chosen = order[: int(np.searchsorted(reached, samples)) + 1]
    blocks: dict[str, list[int]] = {}
    for at in sorted(chosen.tolist()):
        if sizes[of[at]][int(number[at])]:
            blocks.setdefault(there[of[at]].id, []).append(int(number[at]))
    uncounted = sum(shard.id in blocks and shard.id not in counts and shard.expected is None for shard in there)
    return Pilot(blocks, int(reached[len(chosen) - 1]), first_only, uncounted)


def _first(shard: Shard) -> list[int]:
    """Samples of the first block, as far as the shard's count is known."""
    return [BLOCK if shard.expected is None else min(shard.expected, BLOCK)]


def samples_in(shard: Shard, blocks: Sequence[int]) -> int:
    """How many samples these blocks of a shard hold; an upper bound where the shard's count is not known."""
    return sum(BLOCK if shard.expected is None else min(BLOCK, shard.expected - BLOCK * number) for number in blocks)


def _mixed(values: Any) -> Any:
    """The finalizer of splitmix64 (Steele et al., 2014), element by element: numbers that look random."""
    import numpy as np

    with np.errstate(over="ignore"):
        values = values * np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _too_many(samples: int, total: int, first_only: int) -> str:
    said = f"launch: `pilot`: {samples:,} samples are more than the {total:,} that can be drawn. "
    if first_only:
        return said + (
            f"Of {first_only:,} shards it is the first block of {BLOCK} alone, for without an index (`data.index`) the "
            f"others cannot be read without all that lies before them. Write at most pilot={total}."
        )
    return said + "They are all of the plan: launch without a pilot."


# --- of a run -----------------------------------------------------------------------------------


def write(run: Run, pilot: Pilot) -> str:
    """Record a pilot in the run; returns its name, for the submission."""
    folder = run.path / "pilot"
    folder.mkdir(exist_ok=True)
    atomic.create(folder / f"{pilot.name}.json", atomic.as_json(asdict(pilot)))
    return pilot.name


def read(run: Run, name: str) -> Pilot:
    """The pilot of that name. UserError where its file is damaged or not there."""
    file = run.path / "pilot" / f"{name}.json"
    try:
        record = json.loads(file.read_bytes())
        found = Pilot(**record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        lost = "Which blocks the pilot is made of is not known. Launching it again writes it anew."
        raise UserError(damage.message(file, error, lost)) from error
    if found.name != name:
        raise UserError(damage.message(file, "it holds other blocks", "Remove it, and launch the pilot again."))
    return found


def newest(run: Run, identity: str) -> Submission | None:
    """The newest submission with this identity that made a pilot."""
    found = [s for s in run.submissions() if s.pilot and s.identity == identity]
    return found[-1] if found else None


def is_over(ledger: Ledger, name: str, shard: Shard, state: State) -> bool:
    """Whether nothing is left to do for a shard: it is done or failed, or its blocks of the pilot `name` are saved.
    With "" for `name`, the whole shard is wanted.
    """
    if state.terminal or not (name and state.ended):
        return state.terminal
    end = ledger.read(shard.id, f"g{state.generation}.e{state.epoch}.end")
    return end.get("how") == SAVED and end.get("pilot") == name


def exit_of_pilot(run: Run, ledger: Ledger, plan: Plan, name: str) -> tuple[Exit, str] | None:
    """(exit code of the pilot's slots, why); None while blocks are left. plan: the pilot's own."""
    reopened, failed = run.generations.by_bucket(), 0
    for bucket, shards in itertools.groupby(plan.shards(), lambda shard: bucket_of(shard.id)):
        here = states(ledger.names(bucket), reopened.get(bucket))
        for shard in shards:
            state = here.get(shard.id, State())
            if not is_over(ledger, name, shard, state):
                return None
            failed += state.status == FAILED
    if failed:
        return Exit.SOME_FAILED, f"nothing of the pilot is left to do; {failed} shards failed"
    return Exit.COMPLETE, "every block of the pilot is saved"


# --- its samples --------------------------------------------------------------------------------


def items(operator: Operator, shard: Shard, blocks: Sequence[int]) -> Iterator[Item | Damage]:
    """The samples of these blocks of a shard, as `Operator.read` gives them."""
    if list(blocks) != [0]:
        if not isinstance(operator, ReadsBlocks):  # `draw` gives such an operator first blocks alone
            raise TypeError(f"{type(operator).__name__} has no read_blocks, which blocks {list(blocks)} need")
        yield from operator.read_blocks(shard, blocks)
        return
    for item in operator.read(shard):
        yield item
        if isinstance(item, Item) and item.index == BLOCK - 1:
            return


def shards(run: Run, submission: Submission) -> Iterator[Shard]:
    """The shards that a submission's pilot has blocks of, in the order of the plan."""
    return Plan(run.plans, read(run, submission.pilot).plan).shards()


def saved(run: Run, submission: Submission) -> Iterator[tuple[Shard, int, pa.Table]]:
    """The rows of a pilot's samples that are there: (shard, index of the first sample, rows), in the order of the plan,
    then of the samples. They come from saved blocks, or, where the full run has finished the shard, from its file.
    """
    pilot = read(run, submission.pilot)
    ledger, opened = run.ledger(submission.identity), run.generations.opened()
    target = columns.schema(submission.checked().operator().column(), submission.identity)
    for shard in Plan(run.plans, pilot.plan).shards():
        state = ledger.state(shard.id, opened)
        if state.status == DONE:
            marker = ledger.read(shard.id, f"g{state.generation}.done")
            with object_store.fetched(run.locate(marker["file"])) as path:
                tables = {0: columns.read(path)}
        else:
            rows, _ = Segments(run.segments(submission.identity, shard.id, state.generation)).read(target)
            tables = rows.tables()
        for number in pilot.blocks[shard.id]:
            for first, table in tables.items():
                start, stop = max(first, number * BLOCK), min(first + table.num_rows, (number + 1) * BLOCK)
                if start < stop:
                    yield shard, start, table.slice(start - first, stop - start)
