"""Finds out what killed an engine, a sample or the reading of a shard, from how the earlier epochs of the shard ended.

Samples that were in flight at a death are suspects: in the next epoch each is applied alone. A sample that was alone in
flight at two deaths is the cause: it is quarantined, and the shard completes without it. So a sample that kills costs
three deaths of an engine; others that were in flight with it cost nothing but their isolation.

What is being read is on record, too. A shard that was being read at a death is read while nothing is in flight from
then on. After three deaths during its reading, two of them with nothing in flight, it is marked failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpc.map.in_flight import InFlight
from hpc.run.directory import Run
from hpc.run.ledger import Claim

DEATHS_ALONE = 2
DEATHS_READING = 3
UNEXPLAINED = 2  # deaths of whole agents: one alone is explained by a lost node


@dataclass(frozen=True)
class Precautions:
    """What the next epoch of a shard does in another way.

    suspects, quarantine: indices of samples to apply alone, and not to apply at all; apart: whether to read the shard
    while nothing is in flight; unreadable: why it is not to be read at all, "" where it is.
    """

    suspects: list[int]
    quarantine: list[int]
    apart: bool
    unreadable: str


def judge(run: Run, claim: Claim, ends: list[dict[str, Any]]) -> Precautions:
    """What to do about a shard.

    Args:
        ends: how the earlier epochs of this generation ended (`Ledger.ends`). Epochs without an end ("unexplained":
            the agent died too, e.g. the whole step ran out of memory) count once there are `UNEXPLAINED` of them.
    """
    alone: Counter[int] = Counter()
    found: set[int] = set()
    reading = reading_alone = 0
    unreadable = ""
    for death in _deaths(run, claim, ends):
        held, together = death["in_flight"], death["together"]
        found.update(held)
        if len(held) == 1 and together == 1 and not death.get("reads"):
            alone[held[0]] += 1
        if death.get("reading"):
            reading += 1
            reading_alone += together == 0
    if reading >= DEATHS_READING and reading_alone >= DEATHS_READING - 1:
        hung = any(str(end.get("reason", "")).startswith("no progress") for end in ends if end.get("reading"))
        unreadable = "input: reading it hangs" if hung else "input: reading it kills the engine"
    quarantined = {index for index, deaths in alone.items() if deaths >= DEATHS_ALONE}
    return Precautions(sorted(found - quarantined), sorted(quarantined), reading > 0, unreadable)


def _deaths(run: Run, claim: Claim, ends: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each death the samples of this shard that were in flight (`in_flight`), how many samples were in all
    (`together`), whether the shard was being read (`reading`), and how many shards were (`reads`).
    """
    for end in ends:
        if end["how"] == "died":
            yield end
        elif end["how"] == "unexplained" and kills_nodes(ends):
            yield _left_in_flight(run, end.get("owner", ""), claim)


def _left_in_flight(run: Run, owner: str, claim: Claim) -> dict[str, Any]:
    """The same of a dead agent, for all of its engines together: any of that may have killed the agent."""
    found = [InFlight.read(path) for path in sorted(run.inflight.glob(f"{owner}.*"))] if owner else []
    samples = [at for held in found for at in held.samples]
    reads = [at for held in found for at in held.reading]
    mine = (claim.shard.id, claim.generation)
    return {
        "in_flight": [index for (shard, generation, index) in samples if (shard, generation) == mine],
        "together": len(samples), "reading": mine in reads, "reads": len(reads),
    }  # fmt: skip


def kills_nodes(ends: list[dict[str, Any]]) -> bool:
    """Whether so many agents died over a shard that it is a suspect: then it gets a node for itself."""
    return sum(e["how"] == "unexplained" for e in ends) >= UNEXPLAINED


def only_this_shard(death: dict[str, Any]) -> bool:
    """Whether no other shard can be to blame for a death: nothing of theirs was in flight or read."""
    return len(death["in_flight"]) == death["together"] and death.get("reads", 0) == bool(death.get("reading"))
