"""Processes of this machine: those that work on a run, and how a child lives no longer than its parent."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_MODULES = (b"hpc.worker", b"hpc.gang.rank")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # see prctl(2)
_libc = ctypes.CDLL(None)  # loaded here: a child between fork and exec should load nothing


def at_work(run: Path) -> list[int]:
    """Process numbers of a run's workers and ranks here, whoever started them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(run) in words and any(module in words for module in _MODULES):
            found.append(int(process.name))
    return found


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Called in a child, before or after exec: the kernel sends it the signal `number` as soon as its parent has ended,
    for whatever reason.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process, not of init."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def drain_with_parent() -> None:
    """For `preexec_fn`: the child gets SIGTERM when its parent is gone, and may finish what it has in flight."""
    die_with_parent(signal.SIGTERM)


def leave_signals_to_parent() -> None:
    """For `preexec_fn`, or called in a child: it ignores the signals that Slurm sends to every process of a step, which
    its parent acts on, and dies with the parent.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
