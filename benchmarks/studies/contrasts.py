"""What the reports of studies share: registered contrasts with their intervals, tables of arms, figures over p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BOOTSTRAP = 10_000


def bootstrap(table: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of a table [seeds, items], its 95 % interval over seeds and items, and twice the share of draws at or below
    0 (a p-value)."""
    rng = np.random.default_rng(0)
    draws = np.empty(BOOTSTRAP)
    for i in range(BOOTSTRAP):
        sampled = table[rng.integers(0, len(table), len(table))]
        draws[i] = sampled[:, rng.integers(0, table.shape[1], table.shape[1])].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(table.mean()), float(low), float(high), float(min(1.0, 2 * (draws <= 0).mean()))


def holm(shares: Sequence[float]) -> list[float]:
    """p-values, adjusted for as many tests."""
    order = sorted(range(len(shares)), key=lambda i: shares[i])
    adjusted, largest = [0.0] * len(shares), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, shares[i] * (len(shares) - rank)))
        adjusted[i] = largest
    return adjusted


def paired_seeds(primary: dict[str, Any], by: Mapping[tuple[str, int], Any]) -> list[int]:
    """Seeds that both arms of a contrast have; by: results by (arm, seed)."""
    return sorted(s for arm, s in by if arm == primary["better"] and (primary["worse"], s) in by)


def verdicts(found: Sequence[tuple[dict[str, Any], str, tuple[float, float, float, float]]]) -> list[str]:
    """A line for each registered contrast: (primary, what was measured, as `bootstrap` returns it, in points)."""
    lines, adjusted = [], holm([share for _, _, (*_, share) in found])
    for (primary, measured, (mean, low, high, _)), share in zip(found, adjusted, strict=True):
        what = f"{measured}, {primary['better']} - {primary['worse']}"
        verdict = "shown" if low > 0 and share < 0.05 else "not shown"
        lines.append(f"{primary['claim']}: {what}: {mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}: {verdict}")
    return lines


def table_of_arms(
    columns: Sequence[str], arms: Mapping[str, Sequence[Sequence[float]]], named: str = "arm (share of originals)"
) -> list[str]:
    """Markdown: means over seeds (range). arms: by name, for each column a percentage a seed; named: what arms are."""
    lines = [f"| {named} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in arms.items():
        cells = [f"{np.mean(v):.1f} ({min(v):.1f}-{max(v):.1f})" if len(v) else "-" for v in row]
        lines.append(f"| {name} ({len(row[0])} seeds) | " + " | ".join(cells) + " |")
    return lines


def curves(names: Sequence[str], results: Sequence[dict[str, Any]], digits: int) -> str:
    """Training loss of every arm, mean over seeds, at tenths of the training."""
    lines = []
    for name in names:
        found = [r["curve"] for r in results if r["arm"] == name]
        if found:
            mean = np.mean(found, 0)
            tenths = np.linspace(0, len(mean) - 1, 11)
            lines.append(f"{name}: " + " ".join(f"{mean[round(i)]:.{digits}f}" for i in tenths))
    return "\n".join(lines)


def figure(shares: Sequence[float], lines: Sequence[tuple[str, str, Mapping[float, Sequence[float]]]]) -> str:
    """An SVG over p: for each (label, colour, percentages of each seed by p) every seed a dot, means a line."""
    top = max(10.0, max((v for *_, line in lines for values in line.values() for v in values), default=0.0))

    def x(p: float) -> float:
        return 60 + 440 * p

    def y(value: float) -> float:
        return 260 - 220 * value / top

    parts = ['<g stroke="#888"><line x1="60" y1="260" x2="500" y2="260"/><line x1="60" y1="260" x2="60" y2="40"/></g>']
    ticks = [round(top * i / 4) for i in range(5)]
    parts += [f'<text x="52" y="{y(t) + 4:.0f}" text-anchor="end">{t}</text>' for t in ticks]
    parts += [f'<text x="{x(p):.0f}" y="278" text-anchor="middle">{p:g}</text>' for p in shares]
    parts.append('<text x="280" y="300" text-anchor="middle">p: share of original texts in training</text>')
    for number, (label, colour, values) in enumerate(lines):
        dots = [(p, v) for p in sorted(values) for v in values[p]]
        parts += [f'<circle cx="{x(p):.1f}" cy="{y(v):.1f}" r="2.5" fill="{colour}"/>' for p, v in dots]
        means = [f"{x(p):.1f},{y(float(np.mean(values[p]))):.1f}" for p in sorted(values) if values[p]]
        parts.append(f'<polyline points="{" ".join(means)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="70" y="{14 + 14 * number}" fill="{colour}">{label}</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="540" height="310" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="540" height="310" fill="white"/>', *parts, "</svg>\n"])
