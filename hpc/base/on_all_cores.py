"""Calls a function for many chunks of work, in as many processes as there are cores."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from hpc.base.processes import die_with_parent

WORTHWHILE = 8  # chunks up to which one process is quicker than the start of others

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

_call: Callable[[Any], Any]


def on_all_cores(call: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Result]]:
    """(chunk, `call(chunk)`) of each, in order. Results are made a few chunks ahead, so that memory does not grow with
    the number of chunks.

    Args:
        call: must be picklable; it is sent to each process once. Its error is raised when the turn of its chunk comes.
    """
    cores, left = len(os.sched_getaffinity(0)), iter(chunks)
    few = list(itertools.islice(left, WORTHWHILE + 1))
    everything = itertools.chain(few, left)
    if cores == 1 or len(few) <= WORTHWHILE:
        yield from ((chunk, call(chunk)) for chunk in everything)
        return
    pool = ProcessPoolExecutor(cores, get_context("spawn"), _begin, (call, os.getpid()))
    try:
        ahead = deque[tuple[Chunk, Future[Result]]]()
        for chunk in everything:
            ahead.append((chunk, pool.submit(_work, chunk)))
            if len(ahead) > 2 * cores:
                done, result = ahead.popleft()
                yield done, result.result()
        for chunk, result in ahead:
            yield chunk, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(call: Callable[[Any], Any], parent: int) -> None:
    global _call
    _call = call
    die_with_parent()  # else it would wait for ever for more work
    if os.getppid() != parent:
        os._exit(1)


def _work(chunk: Any) -> Any:
    return _call(chunk)
