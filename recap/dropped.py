"""What selections dropped and why: counts by reason, and pictures of each, on one page.

    python -m recap.dropped runs/clean runs/selected --out dropped.html

Several selections of the same samples are read in the order of their work: a sample is dropped by the first that does
not keep it, so that the numbers add up to all samples. Reads up to --shards finished shards, evenly spaced, or --all,
and of their tars the first samples for the pictures. The page holds no script and loads nothing. Exit codes: 0 written,
64 wrong usage.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from hpc.base import page
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, ShardError, UserError
from hpc.operator import OK, Damage
from hpc.run.published import Published, PublishedShard
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.texts import TextMember
from recap.data.thumbnails import data_url
from recap.exporting.rows import OtherRun
from recap.randomness import draw
from recap.report import FIRST_ROWS, evenly

KEPT = "kept"
_LONGEST = 300  # characters of a text that is shown


@dataclass(order=True)
class Example:
    """place: in a fixed random order."""

    place: int
    shard: PublishedShard = field(compare=False)
    key: str = field(compare=False)
    image: bytes = field(default=b"", compare=False)
    text: str | None = field(default=None, compare=False)


@dataclass
class Dropped:
    """counts: rows by the selection's name and its reason, KEPT by none; examples of each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[Example]] = field(default_factory=dict)
    shards: int = 0

    @property
    def rows(self) -> int:
        return self.counts.total()


def read(selections: Sequence[Published], shards: Sequence[PublishedShard], each: int) -> Dropped:
    """Which selection dropped the rows of these shards of the first one. UserError where another has other samples."""
    found, first = Dropped(shards=len(shards)), selections[0]
    later = [
        (one, OtherRun(str(one.run.path), "status"), OtherRun(str(one.run.path), "reason")) for one in selections[1:]
    ]
    for one, status, _ in later:
        if lacking := status.lacks(shard.shard for shard in shards):
            raise UserError(f"dropped: {one.run.path} lacks {len(lacking):,} shards (first: {lacking[0]}).")
    for shard in shards:
        table = shard.table(["key", "status", "reason"])
        said = [(first.run.name, table["status"].to_pylist(), table["reason"].to_pylist())]
        said += [(p.run.name, s.read(shard.shard, table["key"]).values, r.read(shard.shard, table["key"]).values)
                 for p, s, r in later]  # fmt: skip
        for number, key in enumerate(table["key"].to_pylist()):
            why = next(((name, reasons[number]) for name, status, reasons in said if status[number] != OK), (KEPT, ""))
            found.counts[why] += 1
            if number < FIRST_ROWS:
                held = found.examples.setdefault(why, [])
                held.append(Example(draw(0, "dropped", shard.shard.id, key), shard, key))
                found.examples[why] = heapq.nsmallest(each, held) if len(held) > 4 * each else held
    found.examples = {why: heapq.nsmallest(each, held) for why, held in found.examples.items()}
    return found


def fetch(found: Dropped, images: tuple[str, ...], key: str, text: TextMember) -> None:
    """Read the examples' images and original texts from their shards, each up to the last one that is wanted."""
    by_shard: dict[str, dict[str, Example]] = {}
    for example in (one for held in found.examples.values() for one in held):
        by_shard.setdefault(example.shard.shard.id, {})[example.key] = example
    for wanted in by_shard.values():
        shard = next(iter(wanted.values())).shard.shard
        try:
            for sample in samples_of(shard, Wanted(images, key, frozenset({text.member}))):
                if isinstance(sample, Damage) or not wanted:
                    break
                if sample.key in wanted:
                    example = wanted.pop(sample.key)
                    example.image = next((sample.members[e] for e in images if e in sample.members), b"")
                    example.text, _ = text.read(sample.members)
        except (OSError, ShardError):
            continue  # the input has moved since: its samples are shown without pictures


def ordered(found: Dropped, selections: Sequence[Published]) -> Iterator[tuple[tuple[str, str], int]]:
    """What became of the rows: what was kept, then the reasons of each selection, most frequent first."""
    names = [KEPT, *(one.run.name for one in selections)]
    yield from sorted(found.counts.items(), key=lambda item: (names.index(item[0][0]), -item[1], item[0][1]))


def html(found: Dropped, selections: Sequence[Published]) -> str:
    """The page."""
    lines = list(ordered(found, selections))
    rows = "".join(
        f"<tr><td>{page.escaped(name)}<td>{page.escaped(reason)}<td class=n>{count:,}"
        f"<td class=n>{100 * count / found.rows:.2f} %</tr>"
        for (name, reason), count in lines
    )
    total = f"<tr><th>all<th><td class=n>{found.rows:,}<td class=n>100.00 %</tr>"
    parts = [
        "<h1>What was kept, and what was dropped</h1>",
        f"<div class=dim>{found.rows:,} samples of {found.shards:,} shards · "
        f"{page.escaped(' → '.join(f'{one.run.name} ({one.identity})' for one in selections))}</div>",
        f"<table><tr><th>by<th>reason<th>samples<th>share</tr>{rows}{total}</table>",
    ]
    for why, count in lines:
        title = KEPT if why[0] == KEPT else f"{why[0]}: {why[1]}"
        cards = "".join(map(_card, found.examples.get(why, [])))
        parts.append(f'<h2>{page.escaped(title)} · {count:,}</h2><div class="grid">{cards}</div>')
    return page.whole("What was dropped", parts)


def _card(example: Example) -> str:
    source = data_url(example.image) if example.image else ""
    picture = f'<img src="{source}" alt="">' if source else "<i>no picture</i>"
    text = "<i>no text</i>" if example.text is None else page.escaped(example.text[:_LONGEST])
    where = f"{page.escaped(example.shard.shard.id)} / {page.escaped(example.key)}"
    return f'<div class="card">{picture}<div class="text">{text}</div><div class="key">{where}</div></div>'


@command
def main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="python -m recap.dropped", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run directories of selecting jobs, in the order of their work")
    parser.add_argument("--out", type=Path, help="file to write (default: dropped.html in the last run)")
    parser.add_argument("--shards", type=int, default=64, help="finished shards to read (default: 64)")
    parser.add_argument("--all", action="store_true", help="read all finished shards")
    parser.add_argument("--samples", type=int, default=6, help="pictures of each reason (default: 6)")
    parser.add_argument("--image", default="jpg,jpeg,png,webp", help="extensions of images (default: %(default)s)")
    parser.add_argument("--text", default="txt", help="member with the original text, as data.text (default: txt)")
    args = parser.parse_args(arguments)
    selections = [Published(run) for run in args.runs]
    done = list(selections[0])
    if not done:
        raise UserError(f"dropped: no shard of {selections[0].run.path} is finished yet.")
    found = read(selections, done if args.all else evenly(done, args.shards), args.samples)
    fetch(found, tuple(args.image.split(",")), "", TextMember.named(args.text))
    out = args.out or selections[-1].run.path / "dropped.html"
    out.write_text(html(found, selections), encoding="utf-8")
    table = Table()
    for heading in ("by", "reason", "samples", "share"):
        table.add_column(heading, justify="right" if heading in ("samples", "share") else "left")
    for (name, reason), count in ordered(found, selections):
        table.add_row(name, reason, f"{count:,}", f"{100 * count / found.rows:.2f} %")
    console.print(table)
    console.print(f"{out}", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
