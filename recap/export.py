"""A run's captions as others read them: parquet or JSON lines in the schema of Recap-DataComp-1B, or tars with the
captions in them.

    python -m recap.export runs/demo OUT                         OUT/data/*.parquet and a card; loads with datasets,
                                                                 pandas, duckdb
    python -m recap.export runs/demo OUT --webdataset            OUT/<shard>.tar: image, original text, caption
    python -m recap.export runs/demo OUT --jsonl                 OUT/data/*.jsonl: a JSON object a line
    python -m recap.export runs/v1 OUT --add re_caption_condition_diverse_topk=runs/v2:caption
    python -m recap.export runs/demo OUT --partial               although shards are missing
    python -m recap.export runs/demo OUT --where "re_length >= 8 and lint is null" --columns key,re_caption,lint
    python -m recap.export runs/demo OUT --shard-size 500MB      files of about that size (or of so many rows: 100000)

--where takes comparisons, in (...), is null, and, or, not over the published columns and the fields of the run's own
column (tokens, finish, lint, ...); texts in 'single quotes'. What is compared with null is left out, as in SQL.

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
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from hpc.base.errors import Exit, Parser, UserError
from hpc.run.published import Published, PublishedShard
from recap.captioned_tars import CaptionView, write_tars
from recap.data.headers import plain
from recap.data.same_image import SameImages
from recap.downloaded import Downloads
from recap.exporting.card import card
from recap.exporting.files import ROWS, Size, size, write
from recap.exporting.rows import COLUMNS, Added, Selection, rows, select

__all__ = ["CaptionView"]


def _files(
    source: Published, making: Path, others: dict[str, Added], selection: Selection, kind: str, size: Size
) -> tuple[int, str]:
    """The number of rows that were written, and what else is to be said."""
    written = write(source, _progress(source), making, others, selection, kind, size)
    text = card(source, written, selection, kind)
    (making / "README.md").write_text(text, encoding="utf-8")
    return written.rows, written.downloads.told()


def _tars(source: Published, making: Path, others: dict[str, Added], selection: Selection) -> tuple[int, str]:
    keep = _kept(others, selection) if selection.where else None
    count, left_out = write_tars(_progress(source), making, f"{source.column}.txt", keep)
    told = "; ".join(f"{number:,} {reason}" for reason, number in left_out.most_common(5))
    return count, f"left out of the tars: {told}" if told else ""


def _kept(others: dict[str, Added], selection: Selection) -> Callable[[PublishedShard], set[str]]:
    """The keys of a shard's samples for which the condition is true."""
    same, downloads = SameImages(), Downloads()

    def keep(shard: PublishedShard) -> set[str]:
        return {plain(key) for key in rows(shard, selection, others, same, downloads)["key"].to_pylist()}

    return keep


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


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recap.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory of a captioning job")
    parser.add_argument("out", type=Path, help="folder to make")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--webdataset", action="store_true", help="tars with image, original text and caption")
    kinds.add_argument("--jsonl", action="store_true", help="JSON lines in the place of parquet")
    parser.add_argument("--add", action="append", default=[], metavar="COLUMN=RUN:FIELD", help="a field of another run")
    parser.add_argument("--where", default="", metavar="CONDITION", help="rows to keep (default: all with a caption)")
    parser.add_argument("--columns", default="", metavar="A,B,…", help="columns to write (default: the published ones)")
    parser.add_argument(
        "--shard-size",
        "--rows-per-file",
        metavar="SIZE",
        help=f"of a file: rows (default: {ROWS:,}), or bytes as 500MB",
    )
    parser.add_argument("--partial", action="store_true", help="export a run that is not complete")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    out = args.out.absolute()
    try:
        if args.webdataset and (args.columns or args.shard_size):
            raise UserError(
                "export: --columns and --shard-size are of parquet and JSON lines: a tar is a tar of the run."
            )
        wanted = size(args.shard_size) if args.shard_size else Size()
        source = Published(args.run)
        missing = source.missing()
        if missing and not args.partial:
            what = f"{len(missing):,} of {len(source.shards):,} shards are not finished (first: {missing[0]})"
            errors.print(f"[red]export: {escape(what)}. Finish the run, or say --partial.[/]")
            return Exit.INCOMPLETE
        others, selection = _others(args.add), select(source, args.columns, args.where)
        making = _making(out)
        if args.webdataset:
            count, said = _tars(source, making, others, selection)
        else:
            kind = "jsonl" if args.jsonl else "parquet"
            count, said = _files(source, making, others, selection, kind, wanted)
        making.rename(out)
    except UserError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    finally:
        shutil.rmtree(out.with_name(f".{out.name}-{os.getpid()}"), ignore_errors=True)
    console.print(f"{count:,} captions in {out}" + (f" · {len(missing):,} shards are missing" if missing else ""))
    for told in (said, selection.unfilled(others)):
        if told:
            errors.print(f"[yellow]export: {escape(told)}.[/]")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
