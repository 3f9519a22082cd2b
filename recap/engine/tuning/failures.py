"""Why a trial has no rate, in one of a few words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

OUT_OF_MEMORY, NEVER_HEALTHY, REFUSED, HUNG, SAMPLES, CRASHED = (
    "out of memory", "never healthy", "refused", "hung", "samples failed", "crashed"
)  # fmt: skip
KINDS = (OUT_OF_MEMORY, NEVER_HEALTHY, REFUSED, HUNG, SAMPLES, CRASHED)

_TAIL = 1 << 18  # bytes of a log that are read
# What torch, CUDA, ROCm, vLLM, SGLang, TensorRT-LLM, JAX and the kernel say; no mere advice how to avoid it.
_MEMORY = re.compile(
    r"OutOfMemory|\bout of memory\b(?! (errors? )?(if|when|can|may|could|issues))|\bMemoryError\b|ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|RESOURCE_EXHAUSTED|No available memory for the cache blocks|Not enough memory"
    r"|[Cc]annot allocate memory|oom[-_]kill|Failed to allocate memory"
    r"|larger than the (maximum number of tokens that can be stored in KV cache|available KV cache memory)",
    re.IGNORECASE,
)


def classify(kind: str, problem: str, code: int | None, logs: Iterable[Path]) -> tuple[str, str]:
    """(one of KINDS, its words).

    Args:
        kind: what the engine's process knows of it, "" where it does not or died.
        problem: its words; code: what it exited with (128 + n for signal n), None where we ended it; logs: of it and
            of its server.
    """
    told = next((line for line in _memory_lines(problem, logs)), "")
    by_server = "captioner.server: " in problem
    if told and (kind != REFUSED or by_server):
        return OUT_OF_MEMORY, told
    if code == 137:
        return OUT_OF_MEMORY, "killed by SIGKILL, as the kernel does when a machine or a job runs out of memory"
    if by_server:  # what cannot work of its settings is said before it is started
        return (NEVER_HEALTHY if "was not healthy within" in problem else CRASHED), problem
    if kind:
        return kind, problem
    return CRASHED, problem or f"it exited with {code}"


def _memory_lines(problem: str, logs: Iterable[Path]) -> Iterable[str]:
    """Lines that say that memory ran out, the newest first."""
    for text in (problem, *map(_tail, logs)):
        for line in reversed(text.splitlines()):
            if _MEMORY.search(line):
                yield line.strip()[:300]


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
