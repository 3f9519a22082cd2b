"""gpu.json as a table for people."""

from __future__ import annotations

import json
from typing import Any


def table(report: dict[str, Any]) -> str:
    """Markdown: one section a stage, one row a number."""
    devices = {found["device"]: None for found in report["stages"].values() if "device" in found}
    device = ", ".join(devices) or "device not read"
    lines = [f"# {device}, {report['date']}", "", f"torch {report['torch']}, transformers {report['transformers']}"]
    for stage, found in report["stages"].items():
        lines += ["", f"## {stage}", "", "| | measured |", "|---|---|"]
        lines += [f"| {name} | {shown(value)} |" for name, value in found.items() if name != "device"]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A value in a cell: four digits, large rates in their usual unit."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    if isinstance(value, float):
        for limit, unit in ((1e12, " T"), (1e9, " G")):
            if value >= limit:
                return f"{value / limit:.4g}{unit}"
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
