"""The engine's schedule without the engine: which turns fill, how many steps a run of captions takes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.caption_work import Turn


def turns(lengths: Sequence[int], slots: int, micro_batch: int, fill_s: float, step_s: float) -> list[Turn]:
    """The turns of `run_native` on a GPU: each is at most one fill, then a step. The host learns a step late that a
    caption has ended."""
    ends: list[int] = []  # the step after which each caption in a slot is known to be finished
    found: list[Turn] = []
    clock, begun, finished = 0.0, 0, 0
    while finished < len(lengths):
        step = len(found) + 1
        if begun < len(lengths) and slots - len(ends) >= micro_batch:
            several = lengths[begun : begun + micro_batch]
            # The fill writes the first token, each step one more, and the host reads one step late.
            ends += [step + max(1, tokens - 1) for tokens in several]
            begun += micro_batch
            clock += fill_s
        clock += step_s
        finished += sum(end <= step for end in ends)
        ends = [end for end in ends if end > step]
        found.append(Turn(clock, finished, begun))
    return found
