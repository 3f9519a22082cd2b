"""Runs a command for a parent that may be killed. When the parent's end of our standard input closes, whatever ended
the parent, all processes of the command are ended, those in sessions of their own included.

    python -m hpc.base.keeper --log FILE COMMAND...

The kernel's parent-death signal reaches direct children alone: what a server starts for itself would stay behind, with
its GPU. This process is the subreaper of the command's tree: a process in it that loses its parent becomes our child,
so that none escapes. When the command ends first, this process ends with its exit code (128 + n for signal n).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from hpc.base.processes import adopt_orphans, die_with_parent

LOOK_S = 0.2  # between two looks at the command, while the parent is there
GRACE_S = 1.5  # between SIGTERM and SIGKILL: nothing is left a few seconds after the parent
STUCK_S = 20.0  # after SIGKILL, when the kernel does not let go of a process (a dead driver)
# Slurm and terminals send these to every process of a step. We ignore them: only the parent's end counts.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", required=True, type=Path, help="file that the command's output is appended to")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    with args.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                args.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=_restore_signals,
            )  # fmt: skip
        except OSError as error:
            log.write(f"{args.command[0]}: {error.strerror}\n".encode())
            return 127
    code = None
    while code is None and not _parent_is_gone(LOOK_S):
        code = process.poll()
        _reap_orphans(process.pid)
    _end_tree(process)
    return 128 - process.returncode if (process.returncode or 0) < 0 else process.returncode or 0


def _restore_signals() -> None:
    """In the child: signals have their default effect again, and it dies with this process should that be killed."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent()


def _parent_is_gone(timeout: float) -> bool:
    ready, _, _ = select.select([0], [], [], timeout)
    return bool(ready) and not os.read(0, 1 << 10)


def _reap_orphans(command: int) -> None:
    """Collect children that have ended, but for the command itself, whose end its Popen has to see."""
    for pid in _children().get(os.getpid(), []):
        if pid != command:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End all descendants: SIGTERM once, and SIGKILL again and again after GRACE_S."""
    begun = time.monotonic()
    asked: set[int] = set()
    while (left := _descendants()) and time.monotonic() - begun < GRACE_S + STUCK_S:
        for pid in left:
            number = signal.SIGKILL if time.monotonic() - begun > GRACE_S else signal.SIGTERM
            if number == signal.SIGKILL or pid not in asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # one that was stopped hears nothing else
                asked.add(pid)
        process.poll()
        _reap_orphans(process.pid)
        time.sleep(0.02)


def _descendants() -> list[int]:
    """All of the tree that lives or waits to be reaped."""
    children, found = _children(), [os.getpid()]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found[1:]


def _children() -> dict[int, list[int]]:
    """Processes of this machine by their parent."""
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:
                continue
            parent = int(stat.rpartition(b")")[2].split()[1])  # the name before it may hold anything
            found.setdefault(parent, []).append(int(entry))
    return found


if __name__ == "__main__":
    sys.exit(main())
