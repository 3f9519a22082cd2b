"""Which sample killed the engine: told from how the earlier epochs of a shard ended.

What was in flight at a death is suspect and is applied alone in the next epoch. A sample that was alone in flight at
two deaths is the cause: it is quarantined, and the shard completes without it. So a poison sample costs three deaths
of an engine; others in flight with it cost nothing but their isolation.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hpc.engine import InFlight
from hpc.ledger import Claim
from hpc.rundir import Run

DEATHS_ALONE = 2
UNEXPLAINED = 2  # deaths of whole agents: one alone is explained by a lost node


def suspects(run: Run, claim: Claim, ends: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """(samples to apply alone, samples not to apply at all).

    Args:
        ends: how the earlier epochs of this generation ended (`Ledger.ends`). Epochs without an end ("unexplained":
            the agent died too, e.g. the whole step ran out of memory) count once there are `UNEXPLAINED` of them.
    """
    alone: Counter[int] = Counter()
    found: set[int] = set()
    for end in ends:
        if end["how"] == "unexplained" and kills_nodes(ends):
            held, together = _left_in_flight(run, end.get("owner", ""), claim)
        elif end["how"] == "died":
            held, together = end["in_flight"], end["together"]
        else:
            continue
        found.update(held)
        if len(held) == 1 and together == 1:
            alone[held[0]] += 1
    quarantined = {index for index, deaths in alone.items() if deaths >= DEATHS_ALONE}
    return sorted(found - quarantined), sorted(quarantined)


def _left_in_flight(run: Run, owner: str, claim: Claim) -> tuple[list[int], int]:
    """(this shard's samples, all samples) in flight in the engines of a dead agent. Any of them may have killed it."""
    paths = sorted(run.inflight.glob(f"{owner}.*")) if owner else []
    held = [at for path in paths for at in InFlight.read(path)[0]]
    return [i for (s, g, i) in held if (s, g) == (claim.shard.id, claim.generation)], len(held)


def kills_nodes(ends: list[dict[str, Any]]) -> bool:
    """Whether so many agents died over a shard that it is a suspect: then it gets a node for itself."""
    return sum(e["how"] == "unexplained" for e in ends) >= UNEXPLAINED


def only_this_shard(death: dict[str, Any]) -> bool:
    """Whether no other shard can be to blame for a death: none of its samples were in flight."""
    return len(death["in_flight"]) == death["together"]
