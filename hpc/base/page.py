"""The parts that self-contained HTML pages are made of: those of `recap.report` and of `hpc.status --html`.

A page holds no script and loads nothing; what stands on it was escaped.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #e8e8e8); --dim: light-dark(#666, #999);
  --line: light-dark(#ddd, #3a3a3a); --a: #3b82c4; --b: #d9822b; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.dim { color: var(--dim); } .facts { display: flex; flex-wrap: wrap; gap: 1rem 2.2rem; margin: 1.2rem 0; }
.facts b { display: block; font-size: 1.25rem; } .grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
.card img { max-width: 100%; height: 9rem; object-fit: contain; display: block; margin-bottom: .5rem;
  outline: 1px solid var(--line); }
.card .text { color: var(--dim); } .key { font: 11px monospace; color: var(--dim); }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { max-width: 100%; height: auto; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem 3rem; }
"""


def whole(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole page. parts: HTML of its body; style: CSS beside that of all pages."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}{style}</style></head><body>{''.join(parts)}</body></html>"
    )


def escaped(text: object) -> str:
    """Text for the page: nothing in it is markup, and control characters are shown."""
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))
    return html.escape(shown, quote=True)


def facts(items: Iterable[tuple[str, str]]) -> str:
    """(name, value) in a row, values large."""
    return '<div class="facts">' + "".join(f"<div><b>{escaped(v)}</b>{escaped(k)}</div>" for k, v in items) + "</div>"


def label(x: int, y: int, text: str) -> str:
    """Text in an SVG."""
    return f'<text x="{x}" y="{y}" font-size="12" fill="currentColor">{escaped(text)}</text>'


def reasons_table(status: Mapping[str, Any], examples: Mapping[str, str]) -> str:
    """What went wrong with samples and shards. status: the facts of `hpc.status`; examples: a sample by reason."""
    rows = [(r, n, examples.get(r, "")) for r, n in status["reasons"].items()]
    rows += [(f"shard damaged: {r}", g["count"], g["example"]) for r, g in status["damaged"].items()]
    rows += [(f"shard failed: {r}", g["count"], g["example"]) for r, g in status["failures"].items()]
    rows += [(f"engine died: {r}", n, "") for r, n in status["engine_deaths"].items()]
    if not rows:
        return "<div>nothing</div>"
    body = "".join(f"<tr><td>{escaped(r)}<td class=n>{n:,}<td class=key>{escaped(x)}</tr>" for r, n, x in rows)
    return f"<table><tr><th>reason<th>count<th>example</tr>{body}</table>"


def hours_table(effort: Mapping[str, Any]) -> str:
    """Where engine hours went, a row for each kind. effort: that part of the facts of `hpc.status`."""
    rows = ""
    for spent in effort["by_kind"].values():
        money = "" if spent["cost"] is None else f"<td class=n>{escaped(effort['currency'])}{spent['cost']:,.2f}"
        share = f"<td class=n>{100 * spent['hours'] / (effort['hours'] or 1.0):.1f} %"
        rows += f"<tr><td>{escaped(spent['what'])}<td class=n>{spent['hours']:,.2f}{share}{money}</tr>"
    said = f"<div class=dim>{escaped(effort['accounted']['what'])}</div>"
    return f"<table>{rows}</table>{said}" if rows else "<div>nothing yet</div>"


def over_time(history: Sequence[Sequence[float]], total: float | None = None) -> str:
    """Samples a second, as bars; with `total` the share of it that was done, as a line from 0 to 100 %.

    Args:
        history: (start, seconds, samples), in order.
    """
    if not history:
        return "<div>nothing finished yet</div>"
    first, last = history[0][0], history[-1][0] + history[-1][1]
    most = max(count / seconds for _, seconds, count in history) or 1.0
    span = max(1.0, last - first)
    shapes = "".join(
        f'<rect x="{60 + 900 * (t - first) / span:.1f}" width="{max(1.0, 900 * seconds / span - 0.5):.1f}" '
        f'y="{110 - 100 * count / seconds / most:.1f}" height="{100 * count / seconds / most:.1f}" fill="var(--a)"/>'
        for t, seconds, count in history
    )
    if total:
        shapes += _share_line(history, total)
    start, end = (time.strftime("%m-%d %H:%M", time.localtime(t)) for t in (first, last))
    labels = label(0, 16, f"{most:,.1f}/s") + label(60, 128, start) + label(890, 128, end)
    return f'<svg viewBox="0 0 980 132" role="img" aria-label="samples a second">{shapes}{labels}</svg>'


def _share_line(history: Sequence[Sequence[float]], total: float) -> str:
    first, last = history[0][0], history[-1][0] + history[-1][1]
    points, done = ["60,110"], 0.0
    for t, seconds, count in history:
        done += count
        x = 60 + 900 * (t + seconds - first) / max(1.0, last - first)
        points.append(f"{x:.1f},{110 - 100 * min(1.0, done / total):.1f}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--b)" stroke-width="2"/>'
