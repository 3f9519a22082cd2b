"""Who else may write where a run lies. What is protected from whom: docs/security.md."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from hpc.base.errors import UserError


def check(run: Path) -> list[str]:
    """Warnings about who may write a run's directory (which need not exist yet) and the directories above it.

    Raises UserError where other users could replace the run's directory by one of their own.
    """
    warnings = []
    for place in _existing(run):
        facts = place.stat()
        ours = facts.st_uid in (0, os.geteuid())
        if not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            continue
        sticky = facts.st_mode & stat.S_ISVTX
        if facts.st_mode & stat.S_IWOTH and not sticky:
            raise UserError(
                f"launch: everybody may write {place}, and so replace {run}. chmod o-w it (or +t, as /tmp has), "
                "or choose another `runs`."
            )
        if place == run:
            whom = "everybody" if facts.st_mode & stat.S_IWOTH else f"group {_group(facts.st_gid)}"
            warnings.append(
                f"{run} may be written by {whom}: data, settings and control files of this run, not its code"
            )
        elif not ours and not sticky:
            raise UserError(
                f"launch: group {_group(facts.st_gid)} may write {place}, which is {_user(facts.st_uid)}'s, and so "
                f"replace {run}. Have it made sticky (chmod +t), or choose another `runs`."
            )
    return warnings


def _existing(run: Path) -> Iterator[Path]:
    """The run's directory and all above it, without links, as far as they exist."""
    real = Path(os.path.realpath(run))
    yield from ((run if place == real else place) for place in (real, *real.parents) if place.exists())


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
