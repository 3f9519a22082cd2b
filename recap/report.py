"""Look at a run's captions: one self-contained HTML page, or a few of them here.

    python -m recap.report runs/demo          writes runs/demo/report.html: images with their original text and
                                              caption, lengths, vocabulary, reasons, throughput, cost
    python -m recap.report runs/demo --text   a few captions beside their originals, in this terminal
    python -m recap.report runs/demo --statistics [--all] --scores re.clip=runs/clip-scores:clip_re
                                              --scores org.clip=runs/clip-scores:clip_org
                                              the table of the paper's section 4: lengths, vocabulary, any scores of
                                              both texts; with pictures in runs/demo/statistics.html

Reads up to --shards finished shards, evenly spaced, and their tars for the pictures. The page holds no script and loads
nothing. Exit codes: 0 written, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hpc.base import page
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.page import escaped as _e
from hpc.base.page import label
from hpc.base.text import printable
from hpc.operator import OK
from hpc.run.published import Published, PublishedShard
from recap import text_statistics
from recap.data.kind import Wanted
from recap.data.thumbnails import data_url, images_of
from recap.engine.provenance import writers
from recap.run_status import status

FIRST_ROWS = 256  # of a shard from which pictures are taken, so that little of a tar is read
REPEATED = 3  # times an image must occur to be shown as a possible placeholder


@dataclass
class Sampled:
    """A sample that is shown."""

    shard: PublishedShard
    key: str
    text: str | None
    caption: str | None
    tokens: int | None
    image: bytes = b""


@dataclass
class Look:
    """What was seen of the captions."""

    shards: int = 0
    rows: int = 0
    words: dict[str, list[int]] = field(default_factory=lambda: {"original": [], "caption": []})
    vocabulary: dict[str, Counter[str]] = field(default_factory=lambda: {"original": Counter(), "caption": Counter()})
    lint: Counter[str] = field(default_factory=Counter)
    limited: int = 0  # captions that hit the token limit; those in mid-sentence are "cut" in `lint`
    by: dict[str, None] = field(default_factory=dict)  # what wrote them
    tokens: int = 0
    images: Counter[str] = field(default_factory=Counter)
    shown: list[Sampled] = field(default_factory=list)
    repeated: list[Sampled] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)  # key by reason


_FIELDS = ["key", "text", "caption", "sha256", "status", "reason", "tokens", "finish", "lint"]


def look(source: Published, shards: int, samples: int) -> Look:
    """Read the columns of up to `shards` shards and choose `samples` samples to show, the same ones every time."""
    done = list(source)
    if not done:
        raise UserError(f"report: no shard of {source.run.path} is finished yet. Look at python -m hpc.status.")
    chosen = evenly(done, shards)
    captioner = source.submission.config.get("captioner", {})
    seen = Look(shards=len(chosen), by=dict.fromkeys(writers(captioner, [shard.marker for shard in chosen])))
    first_with: dict[str, Sampled] = {}
    candidates: list[Sampled] = []
    for shard in chosen:
        for number, row in enumerate(shard.table(_FIELDS).to_pylist()):
            seen.rows += 1
            if row["sha256"]:
                seen.images[row["sha256"]] += 1
            if row["reason"]:
                seen.examples.setdefault(f"{row['status']}: {row['reason']}", f"{shard.shard.id} / {row['key']}")
            if row["status"] != OK:
                continue
            _count(seen, row)
            sample = Sampled(shard, row["key"], row["text"], row["caption"], row["tokens"])
            first_with.setdefault(row["sha256"], sample)
            if number < FIRST_ROWS:
                candidates.append(sample)
    candidates.sort(key=lambda s: hashlib.sha256(f"{s.shard.shard.id}/{s.key}".encode()).digest())
    seen.shown = candidates[:samples]
    often = [digest for digest, count in seen.images.most_common(8) if count >= REPEATED and digest in first_with]
    seen.repeated = [first_with[digest] for digest in often]
    return seen


def evenly(done: list[PublishedShard], count: int) -> list[PublishedShard]:
    """At most so many of these, evenly spaced."""
    count = min(count, len(done))
    return [done[i * len(done) // count] for i in range(count)]


def _count(seen: Look, row: dict[str, Any]) -> None:
    seen.lint.update(row["lint"] or [])
    seen.limited += row["finish"] == "length"
    seen.tokens += row["tokens"] or 0
    for kind, text in (("original", row["text"]), ("caption", row["caption"])):
        words = re.findall(r"\w+", (text or "").lower())
        seen.words[kind].append(len(words))
        seen.vocabulary[kind].update(words)


def fetch_images(samples: Sequence[Sampled], images: Wanted) -> None:
    """Read the samples' images from their shards; where the input has moved since, captions are shown without."""
    by_shard: dict[str, list[Sampled]] = {}
    for sample in samples:
        by_shard.setdefault(sample.shard.shard.id, []).append(sample)
    for wanted in by_shard.values():
        found = images_of(wanted[0].shard.shard, {sample.key for sample in wanted}, images)
        for sample in wanted:
            sample.image = found.get(sample.key, b"")


# --- the page ---------------------------------------------------------------------------------


def captions_page(source: Published, seen: Look, facts: dict[str, Any]) -> str:
    captioner = source.submission.config.get("captioner", {})
    title = f"{source.run.name} · {source.column}"
    parts = [
        f"<h1>{_e(title)}</h1>",
        f'<div class="dim">identity {_e(source.identity)} · {_e(", ".join(seen.by))} · '
        f"“{_e(captioner.get('prompt') or '')}” · {time.strftime('%Y-%m-%d %H:%M')}</div>",
        _facts(facts, seen),
        "<h2>Captions</h2>",
        f'<div class="grid">{"".join(_card(s) for s in seen.shown)}</div>',
        f"<h2>Lengths and words</h2><div class=dim>{seen.rows:,} samples of {seen.shards:,} shards</div>",
        f'<div class="two"><div>{_lengths(seen)}</div><div>{_vocabulary(seen)}</div></div>',
        f'<div class="two"><div><h2>Not captioned, or odd</h2>{page.reasons_table(facts, seen.examples)}</div>',
        f"<div><h2>What looks wrong with captions</h2>{_lint(seen)}</div></div>",
        f"<h2>Throughput</h2>{page.over_time(facts['history'])}",
        f"<h2>Where the {_e(facts['effort']['unit'])} hours went</h2>{page.hours_table(facts['effort'])}",
    ]
    if seen.repeated:
        told = "Images that recur are often what servers send instead of dead links. List them in data.placeholders."
        cards = "".join(_repeated(s, seen) for s in seen.repeated)
        parts.append(f'<h2>Images that recur</h2><div class=dim>{told}</div><div class="grid">{cards}</div>')
    return page.whole(title, parts)


def _picture(sample: Sampled) -> str:
    source = data_url(sample.image) if sample.image else ""
    return f'<img src="{source}" alt="">' if source else ""


def _card(sample: Sampled) -> str:
    text = "<i>no text</i>" if sample.text is None else _e(_shorten(sample.text))
    return (
        f'<div class="card">{_picture(sample)}<div class="text">{text}</div><p>{_e(sample.caption)}</p>'
        f'<div class="key">{_e(sample.shard.shard.id)} / {_e(sample.key)} · {sample.tokens} tokens</div></div>'
    )


def _repeated(sample: Sampled, seen: Look) -> str:
    digest = hashlib.sha256(sample.image).hexdigest() if sample.image else ""
    count = f"{seen.images[digest]:,} times · " if digest else ""
    key = f'<div class="key">{count}{digest}</div>'
    return f'<div class="card">{_picture(sample)}<p>{_e(sample.caption)}</p>{key}</div>'


def _shorten(text: str, most: int = 600) -> str:
    return text if len(text) <= most else text[:most] + " …"


def _facts(facts: dict[str, Any], seen: Look) -> str:
    shards, samples, effort = facts["shards"], facts["samples"], facts["effort"]
    finished = sum(samples[s] for s in ("ok", "skipped", "failed", "quarantined"))
    captions = max(1, len(seen.words["caption"]))
    items = [
        ("shards", f"{shards['done']:,} of {shards['total']:,}"),
        ("captions", f"{samples['ok']:,}"),
        ("not captioned", f"{finished - samples['ok']:,}"),
        ("tokens a caption", f"{seen.tokens / captions:,.1f}"),
        ("hit the limit", f"{100 * seen.limited / captions:.2f} %"),
        ("of all, cut in mid-sentence", f"{100 * seen.lint['cut'] / captions:.2f} %"),
        (f"{effort['unit']} hours", f"{effort['hours']:,.2f}"),
        (f"{effort['unit']} hours idle after the last claim", f"{facts['idle_at_the_end'] or 0:,.2f}"),
        (f"samples/s per {effort['unit']}", f"{effort['samples_per_s']:,.1f}"),
    ]
    if effort["cost"] is not None:
        items.append(("cost", f"{effort['currency']}{effort['cost']:,.2f}"))
        if samples["ok"]:
            each = 1e6 * effort["cost"] / samples["ok"]
            items.append(("cost of a million", f"{effort['currency']}{each:,.2f}"))
    return page.facts(items)


def _lengths(seen: Look) -> str:
    """Two histograms over one axis, up to the 99th percentile."""
    everything = sorted(n for words in seen.words.values() for n in words)
    if not everything:
        return ""
    top = max(10, everything[min(len(everything) - 1, int(0.99 * len(everything)))])
    bins = min(40, top)
    counts = {k: Counter(min(bins - 1, n * bins // (top + 1)) for n in words) for k, words in seen.words.items()}
    most = max((max(c.values(), default=0) for c in counts.values()), default=1) or 1
    bars = []
    for index, kind in enumerate(("original", "caption")):
        for at, count in counts[kind].items():
            height = 150 * count / most
            x = 30 + (at + 0.45 * index) * 440 / bins
            size = f'width="{0.42 * 440 / bins:.1f}" height="{height:.1f}"'
            bars.append(f'<rect x="{x:.1f}" y="{160 - height:.1f}" {size} fill="var(--{"ab"[index]})"/>')
    axis = '<path d="M30 160H470M30 10V160" stroke="currentColor" fill="none"/>' + label(200, 192, "words of a text")
    axis += "".join(label(30 + 110 * i, 176, str(top * i // 4)) for i in range(5)) + label(0, 20, f"{most:,}")
    means = {k: sum(w) / len(w) if w else 0.0 for k, w in seen.words.items()}
    legend = (
        f'<span style="color:var(--a)">■</span> original, mean {means["original"]:.1f} words &nbsp; '
        f'<span style="color:var(--b)">■</span> caption, mean {means["caption"]:.1f} words'
    )
    return f'<div>{legend}</div><svg viewBox="0 0 500 196" role="img" aria-label="lengths">{"".join(bars)}{axis}</svg>'


def _vocabulary(seen: Look) -> str:
    original, caption = seen.vocabulary["original"], seen.vocabulary["caption"]
    union = len(original.keys() | caption.keys()) or 1
    rows = "".join(
        f"<tr><td>{_e(a[0])}<td class=n>{a[1]:,}<td>{_e(b[0])}<td class=n>{b[1]:,}</tr>"
        for a, b in zip(_top(original), _top(caption), strict=True)
    )
    return (
        f"<div>{len(original):,} words in originals, {len(caption):,} in captions "
        f"({100 * len(caption) / union:.1f} % of all words are in captions)</div>"
        f"<table><tr><th colspan=2>original<th colspan=2>caption</tr>{rows}</table>"
    )


def _top(words: Counter[str], count: int = 12) -> list[tuple[str, int]]:
    found = [(w, n) for w, n in words.most_common(200) if len(w) > 3][:count]
    return found + [("", 0)] * (count - len(found))


def _lint(seen: Look) -> str:
    captions = max(1, len(seen.words["caption"]))
    rows = "".join(
        f"<tr><td>{_e(name)}<td class=n>{count:,}<td class=n>{100 * count / captions:.2f} %</tr>"
        for name, count in seen.lint.most_common()
    )
    return f"<table>{rows}</table>" if rows else "<div>nothing</div>"


# --- text, and the command --------------------------------------------------------------------


def as_text(seen: Look) -> Table:
    table = Table(show_lines=True, expand=True)
    longest = max((len(sample.key) for sample in seen.shown), default=0)
    table.add_column("key", min_width=min(24, longest), max_width=24, overflow="fold")
    table.add_column("original text", ratio=3, overflow="fold")
    table.add_column("caption", ratio=6, overflow="fold")
    for sample in seen.shown:
        cells = (sample.key, _shorten(sample.text or "", 200), sample.caption or "")
        table.add_row(*(Text("\n".join(printable(line) for line in cell.split("\n"))) for cell in cells))
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m recap.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory of a captioning job")
    parser.add_argument("--out", type=Path, help="file to write (default: RUN/report.html)")
    parser.add_argument("--samples", type=int, help="samples to show (default: 24; with --text 6)")
    parser.add_argument("--shards", type=int, default=64, help="finished shards to read (default: 64)")
    parser.add_argument("--text", action="store_true", help="print captions beside their originals, write nothing")
    parser.add_argument("--statistics", action="store_true", help="print lengths, vocabulary and scores of both texts")
    parser.add_argument("--all", action="store_true", help="with --statistics: of all finished shards")
    parser.add_argument("--scores", action="append", default=[], metavar="SIDE.NAME=RUN:FIELD",
                        help="with --statistics: a score of captions (side re) or original texts (org)")  # fmt: skip
    args = parser.parse_args(arguments)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        source = Published(args.run)
        if args.statistics:
            shards = list(source) if args.all else evenly(list(source), args.shards)
            made = text_statistics.measure(source, shards, text_statistics.scores_of(args.scores))
            out = args.out or source.run.path / "statistics.html"
            out.write_text(text_statistics.html(source, made), encoding="utf-8")
            Console(highlight=False).print(text_statistics.as_table(made))
            console.print(f"{out}", markup=False)
            return Exit.COMPLETE
        if args.all or args.scores:
            raise UserError("report: --all and --scores belong to --statistics.")
        if args.text:
            Console(highlight=False).print(as_text(look(source, min(args.shards, 4), args.samples or 6)))
            return Exit.COMPLETE
        seen = look(source, args.shards, args.samples or 24)
        data = source.submission.config["data"]
        fetch_images([*seen.shown, *seen.repeated], Wanted(tuple(data["image"]), data.get("key") or ""))
        out = args.out or source.run.path / "report.html"
        out.write_text(captions_page(source, seen, status(source.run.path)), encoding="utf-8")
    except UserError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    console.print(f"{out} · {out.stat().st_size / 2**20:.1f} MiB", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
