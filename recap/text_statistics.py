"""What the paper's section 4 tells of original texts and captions: lengths, vocabulary, and scores side by side."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from hpc.base import page
from hpc.base.errors import UserError
from hpc.operator import OK
from hpc.run.published import Published, PublishedShard
from recap.exporting.rows import OtherRun
from recap.exporting.statistics import mean, quantile
from recap.randomness import draw

SIDES = ("org", "re")
LABELS = {"org": "original", "re": "caption"}
_POINTS = 400  # of the scatter
_WORDS = 15
_COLOURS = {"org": "var(--a)", "re": "var(--b)"}


@dataclass
class Mean:
    """A mean that grows: count, sum and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def half(self) -> float:
        """Half the width of the normal 95 % interval of the mean."""
        spread = max(self.squares - self.total**2 / self.count, 0.0) / max(self.count - 1, 1)
        return 1.96 * math.sqrt(spread / self.count)

    def said(self) -> str:
        return f"{self.mean:,.4g} ± {self.half:.2g} ({self.count:,})" if self.count else "-"


@dataclass
class TextStatistics:
    """By side (org, re): words of a text, words by themselves, and scores by name.

    points: (place in a fixed random order, original's, caption's) of the first score that both have.
    """

    rows: int = 0
    shards: int = 0
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    words: dict[str, Counter[str]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    scores: dict[str, dict[str, Mean]] = field(default_factory=dict)
    points: list[tuple[int, float, float]] = field(default_factory=list)
    pair: str = ""

    @property
    def vocabulary(self) -> dict[str, float]:
        """Share of all different words that a side uses, in %."""
        union = len(self.words["org"].keys() | self.words["re"].keys()) or 1
        return {side: 100 * len(words) / union for side, words in self.words.items()}


def scores_of(given: Sequence[str]) -> dict[tuple[str, str], OtherRun]:
    """What `--scores SIDE.NAME=RUN:FIELD` names, by name and side. UserError where it is not of that form."""
    found: dict[tuple[str, str], OtherRun] = {}
    for value in given:
        what, _, origin = value.partition("=")
        side, _, name = what.partition(".")
        run, _, one = origin.rpartition(":")
        if side not in SIDES or not name or not run:
            raise UserError(
                f"report: --scores {value}: write SIDE.NAME=RUN:FIELD, the side org (original texts) or re (captions), "
                "such as re.clip=runs/clip-scores:clip_re"
            )
        found[name, side] = OtherRun(run, one)
    return found


def measure(
    source: Published, shards: Sequence[PublishedShard], scores: Mapping[tuple[str, str], OtherRun]
) -> TextStatistics:
    """Statistics of the captioned samples of these shards.

    Raises:
        UserError: a run of scores lacks some of the shards, or has other samples in them.
    """
    made = TextStatistics(shards=len(shards))
    for name, side in scores:
        made.scores.setdefault(name, {})[side] = Mean()
    for added in scores.values():
        if lacking := added.lacks(shard.shard for shard in shards):
            raise UserError(f"report: --scores: {added.run} lacks {len(lacking):,} shards (first: {lacking[0]}).")
    made.pair = next((name for name, sides in made.scores.items() if len(sides) == len(SIDES)), "")
    for shard in shards:
        _add(made, shard, scores)
    if not made.rows:
        raise UserError(f"report: no sample of {source.run.path} has a caption.")
    return made


def _add(made: TextStatistics, shard: PublishedShard, scores: Mapping[tuple[str, str], OtherRun]) -> None:
    table = shard.table(["key", "text", "caption", "status"])
    read = {place: added.read(shard.shard, table["key"]).values for place, added in scores.items()}
    for number, row in enumerate(table.to_pylist()):
        if row["status"] != OK:
            continue
        made.rows += 1
        for side, text in zip(SIDES, (row["text"], row["caption"]), strict=True):
            made.lengths[side][len((text or "").split())] += 1
            made.words[side].update(re.findall(r"\w+", (text or "").lower()))
        values = {place: found[number] for place, found in read.items()}
        for (name, side), value in values.items():
            if value is not None and math.isfinite(value):
                made.scores[name][side].add(float(value))
        org, new = (values.get((made.pair, side)) for side in SIDES)
        if org is not None and new is not None:
            made.points.append((draw(0, "scatter", shard.shard.id, row["key"]), float(org), float(new)))
    made.points = heapq.nsmallest(_POINTS, made.points)


def as_table(made: TextStatistics) -> Table:
    """The paper's table, for a terminal."""
    table = Table(title=f"{made.rows:,} captioned samples of {made.shards:,} shards")
    for heading in ("", *(LABELS[side] for side in SIDES)):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    for name, *cells in _lines(made):
        table.add_row(name, *cells)
    return table


def _lines(made: TextStatistics) -> Iterable[tuple[str, ...]]:
    yield "words, mean", *(f"{mean(made.lengths[side]):.2f}" for side in SIDES)
    yield "words, median", *(f"{quantile(made.lengths[side], 0.5):,}" for side in SIDES)
    yield "different words", *(f"{len(made.words[side]):,}" for side in SIDES)
    yield "share of all words, %", *(f"{made.vocabulary[side]:.2f}" for side in SIDES)
    for name, sides in made.scores.items():
        yield f"{name}, mean ± 95 % (rows)", *(sides[side].said() if side in sides else "-" for side in SIDES)


def html(source: Published, made: TextStatistics) -> str:
    """The page: the table, a histogram of lengths, the scores as points, the most frequent words."""
    title = f"{source.run.name} · {source.column} · original texts and captions"
    head = "".join(f"<th>{page.escaped(LABELS[side])}" for side in SIDES)
    rows = "".join(
        f"<tr><td>{page.escaped(name)}{''.join(f'<td class=n>{page.escaped(c)}' for c in cells)}</tr>"
        for name, *cells in _lines(made)
    )
    parts = [
        f"<h1>{page.escaped(title)}</h1>",
        f"<div class=dim>{made.rows:,} captioned samples of {made.shards:,} shards · identity {source.identity}</div>",
        f"<table><tr><th>{head}</tr>{rows}</table>",
        f'<div class="two"><div><h2>Words of a text</h2>{_legend()}{_histogram(made)}</div>',
        f"<div><h2>{page.escaped(made.pair or 'Scores')}</h2>{_scatter(made)}</div></div>",
        f"<h2>Most frequent words, in % of all words</h2>{_legend()}{_shares(made)}",
    ]
    return page.whole(title, parts)


def _legend() -> str:
    return "".join(f'<span style="color:{_COLOURS[side]}">■</span> {LABELS[side]} &nbsp; ' for side in SIDES)


def _bars(values: Mapping[str, Sequence[float]], wide: float) -> str:
    """Pairs of bars over one axis, 150 high."""
    most = max((value for found in values.values() for value in found), default=0.0) or 1.0
    return "".join(
        f'<rect x="{30 + (at + 0.45 * place) * wide:.1f}" y="{160 - 150 * value / most:.1f}" '
        f'width="{0.42 * wide:.1f}" height="{150 * value / most:.1f}" fill="{_COLOURS[side]}"/>'
        for place, (side, found) in enumerate(values.items())
        for at, value in enumerate(found)
        if value
    )


def _histogram(made: TextStatistics) -> str:
    top = max(10, *(quantile(counts, 0.99) for counts in made.lengths.values()))
    bins = min(40, top + 1)
    values = {side: [0.0] * bins for side in SIDES}
    for side, counts in made.lengths.items():
        for words, count in counts.items():
            values[side][min(bins - 1, words * bins // (top + 1))] += count / made.rows
    axis = '<path d="M30 160H470M30 10V160" stroke="currentColor" fill="none"/>'
    axis += "".join(page.label(30 + 110 * i, 176, str(top * i // 4)) for i in range(5))
    return f'<svg viewBox="0 0 500 190" role="img" aria-label="lengths">{_bars(values, 440 / bins)}{axis}</svg>'


def _scatter(made: TextStatistics) -> str:
    if not made.points:
        return "<div class=dim>no score of both texts was named (--scores)</div>"
    low, high = (pick(value for point in made.points for value in point[1:]) for pick in (min, max))
    span = (high - low) or 1.0
    dots = "".join(
        f'<circle cx="{40 + 240 * (x - low) / span:.1f}" cy="{250 - 240 * (y - low) / span:.1f}" r="2.5" '
        'fill="var(--b)" fill-opacity="0.5"/>'
        for _, x, y in made.points
    )
    lines = '<path d="M40 250H280M40 10V250" stroke="currentColor" fill="none"/>'
    lines += '<path d="M40 250L280 10" stroke="currentColor" stroke-dasharray="4" fill="none"/>'
    labels = page.label(40, 266, f"{low:.3g}") + page.label(250, 266, f"{high:.3g}") + page.label(120, 284, "original")
    labels += page.label(0, 20, "caption")
    return f'<svg viewBox="0 0 320 290" role="img" aria-label="scores">{lines}{dots}{labels}</svg>'


def _shares(made: TextStatistics) -> str:
    totals = {side: words.total() or 1 for side, words in made.words.items()}
    both = made.words["org"] + made.words["re"]
    chosen = [word for word, _ in both.most_common(200) if len(word) > 3][:_WORDS]
    values = {side: [100 * made.words[side][word] / totals[side] for word in chosen] for side in SIDES}
    wide = 900 / max(len(chosen), 1)
    names = "".join(page.label(int(30 + at * wide), 176, word[:10]) for at, word in enumerate(chosen))
    return f'<svg viewBox="0 0 960 190" role="img" aria-label="words">{_bars(values, wide)}{names}</svg>'
