"""Which shard a slot claims next: first those of its home range, then those that other slots have not begun, and on
the way those that dead slots held.

One pass walks the whole plan once, listing each ledger directory when it comes to it; no file is probed per shard,
and memory does not grow with the plan (one bit a shard, one chunk of rows at a time).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

from hpc.base.heartbeat import Observer
from hpc.operator import Shard
from hpc.run.directory import Run
from hpc.run.ledger import CLAIMED, Claim, Ledger, State, bucket_of, states
from hpc.run.pilot import is_over
from hpc.run.plan import Plan

FIRST_PAUSE_S = 0.25
_CHUNK = 4096


class Candidates:
    """Claims shards for one slot.

    Args:
        pilot: the name of the pilot whose part of the shards is to be made; "": all of them.
    """

    def __init__(
        self, run: Run, plan: Plan, ledger: Ledger, observer: Observer, me: str, slot: int, slots: int, look_s: float,
        pilot: str = "",
    ) -> None:  # fmt: skip
        self._pilot = pilot
        self._run, self._plan, self._ledger, self._observer, self._me = run, plan, ledger, observer, me
        self._order = _chunks(len(plan), slot, slots)
        self._terminal = bytearray(len(plan) // 8 + 1)
        self._reopened: Mapping[str, Mapping[str, int]] = {}  # by bucket
        self._generation_count = -1
        self._listings: dict[str, dict[str, State]] = {}
        self._owners: dict[tuple[str, int, int], str] = {}
        self._walk: Iterator[tuple[int, Shard]] | None = None
        self._left_now = self._busy_now = 0
        self.left = len(plan)  # shards without a terminal marker, as of the last full pass
        self.busy = 0  # of these, claimed by others
        self._next_pass, self._pause_s = 0.0, FIRST_PAUSE_S
        self._look_s, self._next_look = look_s, 0.0
        self._left_to_others: set[str] = set()

    def acquire(self, pause_s: float, held: Collection[str]) -> Claim | None:
        """Claim a shard, or None: nothing is claimable now.

        Args:
            pause_s: seconds before the plan is walked again after a walk that found nothing (less after the first
                ones).
            held: ids of shards that this slot works on. None of them is claimed: a generation that a rerun opens waits
                until the present one has ended. Other claims of this slot are left-overs whose end could not be
                written; such shards are claimed again.
        """
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + self._look_s
            self._check_generations()
        if self._walk is None:
            if time.monotonic() < self._next_pass:
                return None
            self._walk, self._busy_now, self._left_now = self._pass(), 0, 0
            self._listings.clear()
        for ordinal, shard in self._walk:
            if claim := self._try(ordinal, shard, held):
                self._pause_s = FIRST_PAUSE_S
                return claim
        self._walk = None
        self._left_to_others.clear()  # nothing else was found: the next pass may claim these, too
        self.left, self.busy = self._left_now, self._busy_now
        self._pause_s = min(pause_s, 2 * self._pause_s)
        self._next_pass = time.monotonic() + self._pause_s
        return None

    def complete(self) -> bool:
        """Whether the last full pass found every shard done or failed."""
        return self._walk is None and self.left == 0

    def look_again(self) -> None:
        """Walk again at once (something changed that this slot did itself)."""
        self._next_pass = 0.0

    def leave_to_others(self, shard_id: str) -> None:
        """Claim this shard here again only when nothing else is left. An engine has died while it read it; if another
        node can read it, this node is to blame and not the shard.
        """
        self._left_to_others.add(shard_id)

    # --- one pass ---------------------------------------------------------------------------

    def _pass(self) -> Iterator[tuple[int, Shard]]:
        for start, stop, backwards in self._order:
            if all(self._is_terminal(i) for i in range(start, stop)):
                continue
            rows = list(enumerate(self._plan.shards(start, stop), start))
            for ordinal, shard in reversed(rows) if backwards else rows:
                if not self._is_terminal(ordinal):
                    yield ordinal, shard

    def _try(self, ordinal: int, shard: Shard, held: Collection[str]) -> Claim | None:
        for _ in range(3):
            state = self._state(shard)
            if state.status == CLAIMED and shard.id not in held and self._free(shard, state):
                # The listing may be hours old, and the dead owner may have finished before it went: look again.
                self._listings.pop(bucket_of(shard.id), None)
                state = self._state(shard)
            if is_over(self._ledger, self._pilot, shard, state):
                self._terminal[ordinal // 8] |= 1 << ordinal % 8
                return None
            if shard.id in held or shard.id in self._left_to_others:
                break
            if state.status == CLAIMED and not self._free(shard, state):
                self._busy_now += 1
                break
            claim = Claim(shard, state.generation, state.epoch + 1)
            if self._ledger.claim(claim, self._me):
                self._left_now += 1
                return claim
            self._listings.pop(bucket_of(shard.id), None)  # our listing was stale: somebody was faster
        self._left_now += 1
        return None

    def _free(self, shard: Shard, state: State) -> bool:
        """Whether nobody works on a claimed shard that is not in our hands."""
        owner = self._owner(shard, state)
        return owner == self._me or self._observer.dead(owner)

    # --- what the ledger says ---------------------------------------------------------------

    def _state(self, shard: Shard) -> State:
        bucket = bucket_of(shard.id)
        if bucket not in self._listings:
            if len(self._listings) >= 8:  # neighbours in the plan share a bucket: a few listings are enough
                self._listings.clear()
            self._listings[bucket] = states(self._ledger.names(bucket), self._reopened.get(bucket))
        return self._listings[bucket].get(shard.id, State())

    def _owner(self, shard: Shard, state: State) -> str:
        """The instance that made the claim. Where the file's content is not visible (yet), a name that no instance has,
        so that it counts as dead a lease later.
        """
        at = (shard.id, state.generation, state.epoch)
        if at not in self._owners:
            owner = self._ledger.owner(*at)
            if not owner:
                return f"{shard.id}.g{state.generation}.e{state.epoch}"
            self._owners[at] = owner
        return self._owners[at]

    def _is_terminal(self, ordinal: int) -> bool:
        return bool(self._terminal[ordinal // 8] & 1 << ordinal % 8)

    def _check_generations(self) -> None:
        """A rerun may have reopened shards that this slot knows as finished."""
        count = self._run.generations.count()
        if count != self._generation_count:
            self._generation_count = count
            self._reopened = self._run.generations.by_bucket()
            self._terminal = bytearray(len(self._terminal))
            self._walk, self._next_pass = None, 0.0


def _chunks(total: int, slot: int, slots: int) -> list[tuple[int, int, bool]]:
    """(start, stop, backwards) in the order of work: the home range forwards, then the other slots' ranges backwards,
    since their owners come to the ends last.
    """
    order: list[tuple[int, int, bool]] = []
    for step in range(slots):
        other = (slot + step) % slots
        start, stop = other * total // slots, (other + 1) * total // slots
        chunks = [(i, min(i + _CHUNK, stop), step > 0) for i in range(start, stop, _CHUNK)]
        order += reversed(chunks) if step > 0 else chunks
    return order
