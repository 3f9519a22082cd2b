"""Statistics for an export's card, counted while the rows are made: lengths, tokens, faults, and a few samples."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

PAIRS = 20
_FIRST_ROWS = 1024  # rows of each shard among which the samples of the card are chosen
_LENGTHS = ("org_length", "re_length", "tokens")
_DRAWN = {"org_length": ("original text", "#d9822b"), "re_length": ("caption", "#3b82c4")}


@dataclass
class Statistics:
    """counts: by column (words of the original text, words and tokens of the caption), how many rows have each length.
    finish, lint: how many captions ended so, and have this fault.
    pairs: samples for the card: (place in a fixed random order, key, original text, caption), the first PAIRS of them.
    """

    counts: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in _LENGTHS})
    finish: Counter[str] = field(default_factory=Counter)
    lint: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[str, str, str | None, str]] = field(default_factory=list)

    def add(self, shard: str, table: pa.Table) -> None:
        """Count the rows of a shard, in an export's wide schema."""
        for name in (*_LENGTHS, "finish", "lint"):
            if name in table.column_names:
                values = pc.list_flatten(table[name]) if name == "lint" else table[name]
                counts: Counter[int] | Counter[str]
                counts = self.counts[name] if name in _LENGTHS else self.finish if name == "finish" else self.lint
                for found in pc.value_counts(values.drop_null()).to_pylist():
                    counts[found["values"]] += found["counts"]
        shown = table.slice(0, _FIRST_ROWS).select(["key", "org_caption", "re_caption"]).to_pylist()
        order = [hashlib.sha256(f"{shard}/{row['key']}".encode()).hexdigest() for row in shown]
        new = [(at, r["key"], r["org_caption"], r["re_caption"]) for at, r in zip(order, shown, strict=True)]
        self._show(new)

    def merge(self, other: Statistics) -> None:
        """Add the counts of the shards that follow."""
        for name, counts in other.counts.items():
            self.counts[name].update(counts)
        self.finish.update(other.finish)
        self.lint.update(other.lint)
        self._show(other.pairs)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Statistics:
        """From `vars` of another, after a round trip through JSON."""
        counts = {name: Counter({int(k): n for k, n in found.items()}) for name, found in record["counts"].items()}
        pairs = [(at, key, original, caption) for at, key, original, caption in record["pairs"]]
        return cls(counts, Counter(record["finish"]), Counter(record["lint"]), pairs)

    def _show(self, more: Sequence[tuple[str, str, str | None, str]]) -> None:
        self.pairs = heapq.nsmallest(PAIRS, [*self.pairs, *more], key=lambda pair: pair[0])


def quantile(counts: Counter[int], share: float) -> int:
    """The smallest value such that at least `share` of all values are at most as large. counts: by value.

    >>> quantile(Counter({1: 5, 7: 5}), 0.5), quantile(Counter({1: 5, 7: 5}), 0.51)
    (1, 7)
    """
    seen, wanted = 0, share * counts.total()
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0


def mean(counts: Counter[int]) -> float:
    return sum(value * count for value, count in counts.items()) / max(1, counts.total())


def draw_lengths(statistics: Statistics, path: Path) -> None:
    """Draw a PNG histogram of the lengths of originals and captions in words, up to the 99th percentile."""
    kinds = {name: statistics.counts[name] for name in _DRAWN}
    top = max(10, *(quantile(counts, 0.99) for counts in kinds.values()))
    bins = min(40, top + 1)
    shares = {name: [0.0] * bins for name in kinds}
    for name, counts in kinds.items():
        for words, count in counts.items():
            shares[name][min(bins - 1, words * bins // (top + 1))] += count / counts.total()
    most = max(max(found) for found in shares.values()) or 1.0
    image = Image.new("RGB", (960, 400), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    wide = 860 / bins
    for place, (name, found) in enumerate(shares.items()):
        label, colour = _DRAWN[name]
        for at, share in enumerate(found):
            left = 60 + (at + 0.05 + 0.45 * place) * wide
            pen.rectangle((left, 340 - 270 * share / most, left + 0.42 * wide, 340), fill=colour)
        said = f"{label}: mean {mean(kinds[name]):.1f}, median {quantile(kinds[name], 0.5)} words"
        pen.text((70 + 430 * place, 20), said, colour, font)
    pen.line((60, 340, 920, 340), fill="black")
    for part in range(5):
        pen.text((60 + 215 * part, 346), f"{top * part // 4}", "black", font, anchor="ma")
    pen.text((490, 372), "words of a text", "black", font, anchor="ma")
    pen.text((54, 62), f"{100 * most:.0f} %", "black", font, anchor="ra")
    image.save(path, optimize=True)
