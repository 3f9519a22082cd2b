"""Exit codes, and the one exception that is shown to a user as a message instead of a traceback."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from enum import IntEnum
from typing import Any, NoReturn


class Exit(IntEnum):
    """What a process of this toolkit exits with. The batch script requeues on every code but the first four."""

    COMPLETE = 0  # every shard is done
    INCOMPLETE = 1  # shards are left, and this process can do no more for them (or: verify found damage)
    SOME_FAILED = 2  # all shards have ended, but some failed or hold no sample, or no sample is ok: hpc.map.verdict
    USAGE = 64  # the command, the config or the run directory is wrong; a second try would not help
    CRASHED = 70  # uncaught exception
    REQUEUE = 75  # stopped early (time limit, preemption): run me again
    TERMINATED = 143  # SIGTERM (128 + 15), drained


FINAL = (Exit.COMPLETE, Exit.INCOMPLETE, Exit.SOME_FAILED, Exit.USAGE)
"""Codes after which another life would change nothing."""


class Parser(argparse.ArgumentParser):
    """argparse, whose usage shows what was typed (python -m MODULE), and whose wrong usage exits with 64 instead of 2:
    here 2 means that some shards failed. A description is printed with its own line breaks.
    """

    def __init__(self, **settings: Any) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        if module is not None and "prog" not in settings:
            settings["prog"] = f"python -m {module.name.removesuffix('.__main__')}"
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: error: {message}\n")


class UserError(Exception):
    """A mistake that its user can mend. The text says what, where, and what to do."""


class ShardError(Exception):
    """A shard that cannot be processed, raised by an operator's `read`.

    reason: short fixed phrase, for grouping ("input: 403 Forbidden"); detail: particulars. transient: a later try may
    succeed (a store that is away), so that a training may be started again.
    """

    def __init__(self, reason: str, detail: str = "", transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.transient = transient


def storage_full(error: BaseException) -> bool:
    """Whether an error says that the file system takes no more: the fault of the machine or the quota, not of a
    shard.
    """
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def fingerprint(error: BaseException) -> str:
    """A short phrase that is equal for equal causes: paths, numbers and addresses are taken out.

    >>> fingerprint(OSError(5, "Input/output error"))
    'OSError: [Errno #] Input/output error'
    """
    if isinstance(error, ShardError):
        return error.reason
    text = str(error).splitlines()[0] if str(error) else ""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|(?:[\w.+-]+:/)?/[^\s:,]+", "…", text)
    text = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text)
    return f"{type(error).__name__}: {text}"[:160].rstrip(": ")


NO_ANSWER = "Slurm's controller does not answer"


class Unanswered(UserError):
    """The controller does not say whether it has taken a job. said: its last error, or Slurm's command's."""

    def __init__(self, said: str) -> None:
        super().__init__(
            f"launch: {NO_ANSWER} ({said}). Whether it has the job is not known yet. "
            "Launch again later: the first thing it does is to look for this submission."
        )
