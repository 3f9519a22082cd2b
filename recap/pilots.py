"""Pilots of several prompts side by side: one self-contained HTML page.

    python -m hpc.launch CONFIG pilot=20000 name=short captioner.prompt="..."
    python -m hpc.launch CONFIG pilot=20000 name=long captioner.prompt="..."
    python -m recap.pilots runs/short runs/long        writes runs/short/pilots.html

Another prompt is another identity, and so another run; over the same shards pilots are made of the same samples. The
page shows, of the samples that all runs have, what failed, lint and lengths of each run, how they differ from the
first, and captions of some samples beside their images. It holds no script and loads nothing. One run may be given,
too. Exit codes: 0 written, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from hpc.base import page
from hpc.base.errors import Exit, Parser, ShardError, UserError
from hpc.base.page import escaped, label
from hpc.operator import OK, Damage, Shard
from hpc.run import pilot
from hpc.run.directory import Run, Submission
from hpc.run.pilot import BLOCK
from recap.data.thumbnails import data_url

SURE = 1.96  # standard errors: 95 %
_LEAST = 8  # shards, under which nothing is said of how sure a difference is

At = tuple[str, int]  # shard, number of the sample


@dataclass
class Unit:
    """The rows of one shard. long: captions with a length; words: of all captions."""

    rows: int = 0
    ok: int = 0
    odd: int = 0
    limited: int = 0
    tokens: int = 0
    words: int = 0
    lint: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        if row["status"] != OK:
            return
        self.ok += 1
        self.odd += bool(row.get("lint") or row["reason"])
        self.lint.update(row.get("lint") or [])
        self.limited += row.get("finish") == "length"
        self.tokens += row.get("tokens") or 0
        self.words += len(re.findall(r"\w+", row.get("caption") or ""))


@dataclass
class Side:
    """One run's pilot."""

    run: Run
    submission: Submission
    rows: dict[At, dict[str, Any]]

    @property
    def prompt(self) -> str:
        asked = self.submission.config.get("captioner") or self.submission.config.get("writer") or {}
        return str(asked.get("prompt") or asked.get("formats") or "")


_FIELDS = ("key", "status", "reason", "lint", "finish", "tokens", "caption", "text")


def read(path: Path) -> Side:
    """The newest pilot of a run. UserError where it has none, or none of its rows are there."""
    run = Run(path)
    found = pilot.newest(run, run.latest().identity)
    if found is None:
        raise UserError(f"pilots: {path} has had no pilot. Make one: launch it with pilot=20000.")
    rows: dict[At, dict[str, Any]] = {}
    for shard, first, table in pilot.saved(run, found):
        kept = table.select([name for name in _FIELDS if name in table.column_names])
        rows.update(((shard.id, first + number), row) for number, row in enumerate(kept.to_pylist()))
    if not rows:
        raise UserError(f"pilots: no sample of the pilot of {path} is saved yet. Look at python -m hpc.status {path}.")
    return Side(run, found, rows)


def in_all(sides: Sequence[Side]) -> list[At]:
    """The samples that all runs have, in order. UserError where there are none."""
    shared = set(sides[0].rows).intersection(*(side.rows for side in sides[1:]))
    if not shared:
        raise UserError("pilots: these runs have no sample in common. Launch their pilots over the same shards.")
    return sorted(shared)


def units(side: Side, shared: Sequence[At]) -> dict[str, Unit]:
    """By shard."""
    found: dict[str, Unit] = {}
    for shard, number in shared:
        found.setdefault(shard, Unit()).add(side.rows[shard, number])
    return found


@dataclass(frozen=True)
class Line:
    """A line of the table: a ratio of two sums over rows."""

    name: str
    of: Callable[[Unit], float]
    among: Callable[[Unit], float]
    percent: bool = True

    def value(self, found: dict[str, Unit]) -> float:
        among = sum(map(self.among, found.values()))
        return sum(map(self.of, found.values())) / among if among else 0.0

    def difference(self, found: dict[str, Unit], other: dict[str, Unit]) -> tuple[float, float | None]:
        """(how much higher the value of `found` is than that of `other`, half the width of its 95 % interval or None)

        The interval is taken over shards, since rows of one shard resemble one another.
        """
        total, others = self.value(found), self.value(other)
        pairs = [(found[s], other[s]) for s in found if self.among(found[s]) and self.among(other[s])]
        if len(pairs) < _LEAST:
            return total - others, None
        left = [(self.of(a) - total * self.among(a), self.of(b) - others * self.among(b)) for a, b in pairs]
        mean_a, mean_b = (sum(self.among(p[side]) for p in pairs) / len(pairs) for side in (0, 1))
        spread = sum((a / mean_a - b / mean_b) ** 2 for a, b in left) / (len(pairs) - 1)
        return total - others, SURE * math.sqrt(spread / len(pairs))

    def shown(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.percent else f"{value:.1f}"


def lines(sides: Sequence[dict[str, Unit]]) -> list[Line]:
    names = sorted({name for found in sides for unit in found.values() for name in unit.lint})
    ok: Callable[[Unit], float] = lambda unit: unit.ok  # noqa: E731
    return [
        Line("no caption", lambda unit: unit.rows - unit.ok, lambda unit: unit.rows),
        Line("odd (lint, or a note)", lambda unit: unit.odd, ok),
        *(Line(f"lint: {name}", lambda unit, name=name: unit.lint[name], ok) for name in names),  # type: ignore[misc]
        Line("hit the limit", lambda unit: unit.limited, ok),
        Line("tokens a caption", lambda unit: unit.tokens, ok, percent=False),
        Line("words a caption", lambda unit: unit.words, ok, percent=False),
    ]


# --- the page ---------------------------------------------------------------------------------


def whole(sides: Sequence[Side], samples: int) -> str:
    shared = in_all(sides)
    found = [units(side, shared) for side in sides]
    title = f"Pilots: {', '.join(side.run.name for side in sides)}"
    about = f"{len(shared):,} samples of {len(found[0]):,} shards that all of them have"
    parts = [
        f'<h1>{escaped(title)}</h1><div class="dim">{about} · {time.strftime("%Y-%m-%d %H:%M")}</div>',
        _about(sides),
        "<h2>Lint and length</h2><div class=dim>differences from the first run, with 95 % (shards are the units)</div>",
        f'<div class="two"><div>{_table(sides, found)}</div><div>{_plot(sides, found)}</div></div>',
        f'<h2>Captions</h2><div class="grid">{"".join(_cards(sides, shared, samples))}</div>',
    ]
    return page.whole(title, parts)


def _about(sides: Sequence[Side]) -> str:
    about = ((side.run.name, side.submission.identity, side.prompt) for side in sides)
    rows = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}' for cell in cells)}</tr>" for cells in about)
    return f"<table><tr><th>run<th>identity<th>prompt</tr>{rows}</table>"


def _table(sides: Sequence[Side], found: Sequence[dict[str, Unit]]) -> str:
    rows = ""
    for line in lines(found):
        rows += f"<tr><td>{escaped(line.name)}<td class=n>{line.shown(line.value(found[0]))}"
        for other in found[1:]:
            difference, half = line.difference(other, found[0])
            sure = "" if half is None else f" ± {line.shown(half)}"
            rows += f"<td class=n>{line.shown(line.value(other))}<td class=n>{'+' * (difference >= 0)}"
            rows += f"{line.shown(difference)}{sure}"
        rows += "</tr>"
    heads = f"<th>{escaped(sides[0].run.name)}" + "".join(f"<th colspan=2>{escaped(s.run.name)}" for s in sides[1:])
    return f"<table><tr><th>{heads}</tr>{rows}</table>"


def _plot(sides: Sequence[Side], found: Sequence[dict[str, Unit]]) -> str:
    """Odd captions against their length: a point for each run."""
    every = {line.name: line for line in lines(found)}
    odd, long = every["odd (lint, or a note)"], every["words a caption"]
    points = [(long.value(units), odd.value(units)) for units in found]
    right, top = (1.2 * max(values) or 1.0 for values in zip(*points, strict=True))
    shapes = '<path d="M40 170H480M40 10V170" stroke="currentColor" fill="none"/>'
    for side, (x, y) in zip(sides, points, strict=True):
        at = int(40 + 430 * x / right), int(170 - 160 * y / top)
        shapes += (
            f'<circle cx="{at[0]}" cy="{at[1]}" r="4" fill="var(--a)"/>{label(at[0] + 7, at[1] + 4, side.run.name)}'
        )
    shapes += (
        label(180, 200, "words a caption") + label(0, 8, f"odd {100 * top:.1f} %") + label(450, 186, f"{right:.0f}")
    )
    return f'<svg viewBox="0 -6 520 212" role="img" aria-label="odd captions against length">{shapes}</svg>'


def _cards(sides: Sequence[Side], shared: Sequence[At], samples: int) -> list[str]:
    """HTML of some samples, the same ones every time: image, original text, and each run's caption."""
    chosen = sorted(shared, key=lambda at: hashlib.sha256(f"{at[0]}/{at[1]}".encode()).digest())[:samples]
    pictures, cards = _images(sides[0], chosen), []
    for at in chosen:
        first = sides[0].rows[at]
        image = data_url(pictures[at]) if at in pictures else ""
        shown = f'<img src="{image}" alt="">' if image else ""
        shown += f'<div class="text">{escaped(first.get("text") or "")}</div>'
        for side in sides:
            row = side.rows[at]
            said = row.get("caption") if row["status"] == OK else f"{row['status']}: {row['reason']}"
            note = ", ".join(row.get("lint") or [])
            length = f"{row['tokens']} tokens" if row.get("tokens") else ""
            about = " · ".join(filter(None, (side.run.name, length, note)))
            shown += f'<p>{escaped(said or "")}</p><div class="key">{escaped(about)}</div>'
        name = escaped(f"{at[0]} / {first['key']}")
        cards.append(f'<div class="card">{shown}<div class="key">{name}</div></div>')
    return cards


def _images(side: Side, chosen: Sequence[At]) -> dict[At, bytes]:
    """Image files by sample. Samples whose shard can no longer be read are left out."""
    operator = side.submission.checked().operator()
    shards = {shard.id: shard for shard in pilot.shards(side.run, side.submission)}
    found: dict[At, bytes] = {}
    for shard, block in sorted({(shard, number // BLOCK) for shard, number in chosen}):
        try:
            _look(operator, shards[shard], block, set(chosen), found)
        except (OSError, ShardError, UserError):  # the input has moved since: captions are shown without pictures
            continue
    return found


def _look(operator: Any, shard: Shard, block: int, chosen: set[At], found: dict[At, bytes]) -> None:
    last = max(number for name, number in chosen if name == shard.id and number // BLOCK == block)
    for item in pilot.items(operator, shard, [block]):
        if isinstance(item, Damage) or item.index > last:
            return
        if (shard.id, item.index) in chosen and (image := getattr(item.payload, "image", None)):
            found[shard.id, item.index] = image


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m recap.pilots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories whose pilots are shown")
    parser.add_argument("--out", type=Path, help="file to write (default: pilots.html in the first run)")
    parser.add_argument("--samples", type=int, default=24, help="samples to show (default: 24)")
    args = parser.parse_args(arguments)
    try:
        sides = [read(path) for path in args.runs]
        out = args.out or sides[0].run.path / "pilots.html"
        text = whole(sides, args.samples)
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"pilots: {out} cannot be written: {error.strerror}. Choose another --out FILE.") from error
    except UserError as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    Console(highlight=False, soft_wrap=True).print(f"{out} · {out.stat().st_size / 2**20:.1f} MiB", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
