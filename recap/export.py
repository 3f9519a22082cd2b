"""A run's captions as others read them: parquet in the schema of Recap-DataComp-1B, or tars with the captions in them.

    python -m recap.export runs/demo OUT                         OUT/data/*.parquet and a card; loads with datasets,
                                                                 pandas, duckdb
    python -m recap.export runs/demo OUT --webdataset            OUT/<shard>.tar: image, original text, caption
    python -m recap.export runs/v1 OUT --add re_caption_condition_diverse_topk=runs/v2:caption
    python -m recap.export runs/demo OUT --partial               although shards are missing

Trainings read such a parquet export as a column of the same tars (OUT/shards.json says which rows are whose):

    python -m hpc.launch configs/clip/recap_b16.yaml data.columns.re_caption.folder=OUT

Without copying any image, webdataset's own reader joins the captions to the tars:

    view = CaptionView("runs/demo")
    dataset = webdataset.WebDataset(view.urls, shardshuffle=False).compose(view)    # samples gain "recap.txt"

and with our reader, which reads damaged tars to their last good byte:

    dataset = webdataset.DataPipeline(webdataset.SimpleShardList(view.urls), view.read)

Exit codes: 0 written, 1 the run is not complete, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from hpc.base.errors import Exit, Parser, UserError
from hpc.operator import OK, Shard
from hpc.run.published import Published, PublishedShard
from recap.captioned_tars import CaptionView, write_tars
from recap.data.column import Values
from recap.data.exported import ShardRows, file_name, write_contents
from recap.data.index import BLOCK
from recap.data.origin import Origins
from recap.data.same_image import SameImages, digest_field
from recap.downloaded import Downloads
from recap.engine.provenance import writers

__all__ = ["CaptionView"]

VERSION = "2"  # 2: image_sha256

# The published data set's 11 columns, the 2 that came later, and one of ours, all nullable: files without scores have
# this schema too. name, type, what it holds
COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("url", pa.string(), "address of the image, where the downloader's metadata is at hand"),
    ("re_caption", pa.string(), "the generated caption"),
    ("org_caption", pa.string(), "the original text"),
    ("sha256", pa.string(), "of the downloaded file (downloader's metadata), else of the file that was captioned"),
    ("key", pa.string(), "the sample's key in its tar"),
    ("re_clip_score", pa.float64(), "CLIP score of re_caption"),
    ("org_clip_score", pa.float64(), "CLIP score of org_caption"),
    ("re_length", pa.int64(), "words of re_caption"),
    ("org_length", pa.int64(), "words of org_caption"),
    ("re_gpt4v_score", pa.int64(), "a judge's rating of re_caption, 1-5"),
    ("org_gpt4v_score", pa.int64(), "a judge's rating of org_caption, 1-5"),
    ("re_caption_condition_diverse_topk", pa.string(), "a caption that was conditioned on the original text"),
    ("re_condition_length", pa.int64(), "words of that caption"),
    ("image_sha256", pa.string(), "of the image file that was captioned: with which readers compare (recap.data)"),
]
_LENGTHS = {
    "re_length": "re_caption",
    "org_length": "org_caption",
    "re_condition_length": "re_caption_condition_diverse_topk",
}


def schema(source: Published) -> pa.Schema:
    """The one schema of all files of an export."""
    fields = [pa.field(name, kind, nullable=True, metadata={"about": about}) for name, kind, about in COLUMNS]
    return pa.schema(fields, {"schema_version": VERSION, "column": source.column, "identity": source.identity})


# --- rows -------------------------------------------------------------------------------------


def rows(
    shard: PublishedShard, target: pa.Schema, others: dict[str, Added], same: SameImages, downloads: Downloads
) -> pa.Table:
    """The captioned samples of one shard, in the export's schema.

    Args:
        others: {column of the export: a field of another run}, joined by shard and place.
        same: compares the images that the columns were made from.
        downloads: joins what the downloader knows.
    """
    table = shard.table(["key", "sha256", "text", "caption", "status"])
    found: dict[str, Any] = {
        "key": table["key"],
        "re_caption": table["caption"],
        "org_caption": table["text"],
        "sha256": table["sha256"],
        "image_sha256": table["sha256"],
    }
    for name, value in downloads.read(shard, table["key"].to_pylist()).items():
        found[name] = pc.coalesce(value, found[name]) if name in found else value
    read = {name: added.read(shard.shard, table["key"]) for name, added in others.items()}
    _compare(same, shard, table, read)
    found |= {name: pa.array(values.values) for name, values in read.items()}
    for name, text in _LENGTHS.items():
        if text in found and name not in found:
            found[name] = _words(found[text])
    whole = {f.name: _cast(found[f.name], f) if f.name in found else pa.nulls(len(table), f.type) for f in target}
    return pa.table(whole, schema=target).filter(pc.equal(table["status"], OK))


def _cast(values: Any, field: pa.Field) -> Any:
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise UserError(f"export: {field.name}: cannot become {field.type}: {error}") from error


def _words(texts: Any) -> pa.Array:
    return pa.array([None if t is None else len(t.split()) for t in texts.to_pylist()], pa.int64())


class Added:
    """A field of another run over the same tars."""

    def __init__(self, run: str, field: str) -> None:
        self._run, self._field, self._published = run, field, Published(run)
        self._origins = Origins(field, run, self._published.shards)

    def read(self, shard: Shard, keys: Any) -> Values:
        """The values of a shard's samples. UserError where the other run has other samples, or no such field."""
        origin = self._origins.find(shard)
        other = self._published.find(origin.shard.id) if origin else None
        if origin is None or other is None:
            return Values([None] * len(keys), [None] * len(keys))
        table = other.table()
        if self._field not in table.column_names:
            known = ", ".join(table.column_names)
            raise UserError(f"export: the column of {self._run} has no field {self._field!r}. It has {known}.")
        if table["key"] != keys:
            raise UserError(f"export: {shard.id}: {self._run} has other samples. Are both runs of one input?")
        digests = digest_field(table.schema)
        return Values(table[self._field].to_pylist(), table[digests].to_pylist() if digests else None, origin.doubt)


def _compare(same: SameImages, shard: PublishedShard, table: pa.Table, others: dict[str, Values]) -> None:
    keys, own = table["key"].to_pylist(), table["sha256"].to_pylist()
    for start in range(0, len(keys) if others else 0, BLOCK):
        part = slice(start, start + BLOCK)
        columns = {"of this run": Values([], own[part])}
        for name, values in others.items():
            columns[name] = Values([], values.digests and values.digests[part], values.doubt)
        same.check(shard.shard.id, keys[part], [{}] * len(keys[part]), columns)


def write_parquet(source: Published, making: Path, others: dict[str, Added], rows_per_file: int) -> tuple[int, str]:
    """Write data/*.parquet and README.md into a folder; returns the number of rows, and what else is to be said."""
    target = schema(source)
    (making / "data").mkdir(parents=True)
    total, number, held, reasons = 0, 0, [target.empty_table()], Counter[str]()
    places: list[ShardRows] = []
    same, downloads, by = SameImages(), Downloads(), dict[str, None]()
    for shard in _progress(source):
        held.append(rows(shard, target, others, same, downloads))
        reasons.update(shard.marker["reasons"])
        by |= dict.fromkeys(writers(source.submission.config.get("captioner", {}), [shard.marker]))
        places.append(ShardRows(shard.shard.id, shard.shard.uri, shard.shard.bytes, total, len(held[-1])))
        total += len(held[-1])
        while sum(map(len, held)) >= rows_per_file:
            table = pa.concat_tables(held)
            _write(making, number, table.slice(0, rows_per_file))
            number, held = number + 1, [table.slice(rows_per_file)]
    if sum(map(len, held)) or not number:
        _write(making, number, pa.concat_tables(held))
    write_contents(making, source.column, source.identity, rows_per_file, places)
    (making / "README.md").write_text(_card(source, total, reasons, downloads, list(by)), encoding="utf-8")
    return total, downloads.told()


def _write(making: Path, number: int, table: pa.Table) -> None:
    pq.write_table(table, making / "data" / file_name(number), compression="zstd", row_group_size=65536)


def _card(source: Published, total: int, reasons: Counter[str], downloads: Downloads, by: list[str]) -> str:
    """A data card whose head tells `datasets.load_dataset(OUT)` where the files are."""
    captioner = source.submission.config.get("captioner", {})
    lines = ["---", "configs:", "- config_name: default", "  data_files: data/*.parquet", "---", ""]
    lines += [f"# {source.run.name}: {total:,} captions", ""]
    lines.append(f"- schema version {VERSION}, identity `{source.identity}`")
    lines += [f"- written by: {words}" for words in by]
    for label, key in (("prompt", "prompt"), ("decoding", "decoding"), ("longest", "max_tokens")):
        if captioner.get(key) is not None:
            lines.append(f"- {label}: {json.dumps(captioner[key], ensure_ascii=False)}")
    lines += downloads.lines()
    lines += ["", "| column | type | meaning |", "|---|---|---|"]
    lines += [f"| {name} | {kind} | {about} |" for name, kind, about in COLUMNS]
    left_out = {r: n for r, n in reasons.most_common() if not r.startswith(f"{OK}: ")}
    if left_out:
        lines += ["", "Samples without a caption are left out:", "", "| reason | samples |", "|---|---|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in left_out.items()]
    return "\n".join(lines) + "\n"


# --- command ----------------------------------------------------------------------------------


def _tars(source: Published, making: Path) -> tuple[int, str]:
    count, left_out = write_tars(_progress(source), making, f"{source.column}.txt")
    told = "; ".join(f"{number:,} {reason}" for reason, number in left_out.most_common(5))
    return count, f"left out of the tars: {told}" if told else ""


def _making(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"export: {out} exists and is not empty. Choose another folder.")
    if out.exists():
        out.rmdir()
    making = out.with_name(f".{out.name}-{os.getpid()}")
    making.mkdir(parents=True)
    return making


def _progress(source: Published) -> Iterator[PublishedShard]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(list(source), description="export")


def _others(values: list[str]) -> dict[str, Added]:
    names = [name for name, _, _ in COLUMNS]
    found: dict[str, Added] = {}
    for value in values:
        name, _, origin = value.partition("=")
        run, _, field = origin.rpartition(":")
        if name not in names or not run:
            raise UserError(f"export: --add {value}: write COLUMN=RUN:FIELD; columns are {', '.join(names)}")
        found[name] = Added(run, field)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m recap.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory of a captioning job")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--webdataset", action="store_true", help="tars with image, original text and caption")
    parser.add_argument("--add", action="append", default=[], metavar="COLUMN=RUN:FIELD", help="a field of another run")
    parser.add_argument("--partial", action="store_true", help="export a run that is not complete")
    parser.add_argument("--rows-per-file", type=int, default=500_000, help="of parquet files (default: 500,000)")
    args = parser.parse_args(arguments)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    out = args.out.absolute()
    try:
        source = Published(args.run)
        missing = source.missing()
        if missing and not args.partial:
            what = f"{len(missing):,} of {len(source.shards):,} shards are not finished (first: {missing[0]})"
            errors.print(f"[red]export: {escape(what)}. Finish the run, or say --partial.[/]")
            return Exit.INCOMPLETE
        others = _others(args.add)
        making = _making(out)
        count, said = (
            _tars(source, making) if args.webdataset else write_parquet(source, making, others, args.rows_per_file)
        )
        making.rename(out)
    except UserError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    finally:
        shutil.rmtree(out.with_name(f".{out.name}-{os.getpid()}"), ignore_errors=True)
    console.print(f"{count:,} captions in {out}" + (f" · {len(missing):,} shards are missing" if missing else ""))
    if said:
        errors.print(f"[yellow]export: {escape(said)}.[/]")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
