"""The parts of what `hpc.status` prints, which its renderers of map jobs, gangs and sweeps share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text


def heading(name: str, about: str, jobs: Sequence[str]) -> Text:
    """The first line: the run's name, what it is, and its newest jobs."""
    line = Text.assemble((name, "bold"), f" · {about}")
    if jobs:
        line.append(f" {' '.join(jobs[-3:])}")
    return line


def facts_table() -> Table:
    """A table of two columns without lines: a label, and the text beside it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def bar(done: int, total: int, width: int = 28) -> Text:
    """A bar with its percentage."""
    share = done / max(total, 1)
    filled = round(width * share)
    return Text.assemble(("█" * filled, "green"), ("░" * (width - filled), "dim"), f" {100 * share:.1f} %")


def in_queue(states: Mapping[str, int], reasons: Sequence[str]) -> str:
    """What squeue says of a run's jobs, to be appended to a line; "" where it says nothing."""
    said = " · squeue: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items())) if states else ""
    return said + (f" ({', '.join(reasons)})" if reasons else "")
