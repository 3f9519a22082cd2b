"""Claims with limits, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass
class Target:
    """A claim and its limit."""

    name: str
    value: float
    limit: float
    unit: str
    most: bool = True  # the limit is the largest allowed value

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.most else self.value >= self.limit


def show(console: Console, targets: list[Target]) -> None:
    table = Table(title="targets", box=None)
    for name in ("", "measured", "limit", ""):
        table.add_column(name, justify="right" if name in ("measured", "limit") else "left")
    for target in targets:
        sign = "≤" if target.most else "≥"
        verdict = "met" if target.met else "[red]missed[/]"
        limit = f"{sign} {target.limit:g} {target.unit}"
        table.add_row(target.name, f"{target.value:,.2f} {target.unit}", limit, verdict)
    console.print(table)
