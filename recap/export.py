"""A run's captions as others read them: parquet or JSON lines in the schema of Recap-DataComp-1B, or tars with the
captions in them.

    python -m recap.export runs/demo OUT                         OUT/data/*.parquet and a card; loads with datasets,
                                                                 pandas, duckdb
    python -m recap.export runs/demo OUT --webdataset            OUT/<shard>.tar: image, original text, caption
    python -m recap.export runs/demo OUT --energon               OUT/captions, OUT/images (links): for Megatron-Energon
    python -m recap.export runs/demo OUT --jsonl                 OUT/data/*.jsonl: a JSON object a line
    python -m recap.export runs/demo OUT --lance                 OUT/data/train.lance
    python -m recap.export runs/v1 OUT --add re_caption_condition_diverse_topk=runs/v2:caption
    python -m recap.export runs/demo OUT --partial               although shards are missing
    python -m recap.export runs/demo OUT --where "re_length >= 8 and lint is null" --columns key,re_caption,lint
    python -m recap.export runs/demo OUT --keep runs/selected    rows that a selecting job kept (recap.select)
    python -m recap.export runs/demo OUT --shard-size 500MB      files of about that size (or of so many rows: 100000)
    python -m recap.export runs/demo OUT --caption-licence cc-by-4.0 --image-licence "other: each image's own"

OUT/README.md is the data set's card, with a head that the Hub takes: source, model, prompt, outcomes, lengths, samples,
cost. Licences are what you say they are, or stand there as not stated. python -m recap.publish sends OUT to the Hub.

--where takes comparisons, in (...), is null, and, or, not over the published columns and the fields of the run's own
column (tokens, finish, lint, ...); texts in 'single quotes'. What is compared with null is left out, as in SQL.

Trainings read such a parquet export as a column of the same tars (OUT/shards.json says which rows are whose):

    python -m hpc.launch configs/clip/recap_b16.yaml data.columns.re_caption.folder=OUT

Without copying any image, webdataset's own reader joins the captions to the tars:

    view = CaptionView("runs/demo")
    dataset = webdataset.WebDataset(view.urls, shardshuffle=False).compose(view)    # samples gain "recap.txt"

and with our reader, which reads damaged tars to their last good byte:

    dataset = webdataset.DataPipeline(webdataset.SimpleShardList(view.urls), view.read)

Killed, it goes on where it ended when the same is asked for again: OUT is there once it is whole.

Exit codes: 0 written, 1 the run is not complete, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from hpc.base.command import command, console, warn
from hpc.base.command_list import version
from hpc.base.errors import Exit, Parser, UserError
from hpc.run.published import Published, PublishedShard
from recap.captioned_tars import CaptionView
from recap.data.kind import Wanted
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.card import ENERGON, LANCE, TARS, CardFacts, write_card
from recap.exporting.energon import Sidecar, commands, write_metadataset
from recap.exporting.files import (
    ROWS,
    Size,
    captioner_of,
    rows_of_a_file,
    size,
    write_files,
    write_places,
    write_rows,
)  # fmt: skip
from recap.exporting.lance import library, write_lance
from recap.exporting.licences import OPTIONS, Licence, licence
from recap.exporting.parts import Parts, parts_of
from recap.exporting.request import ExportRequest
from recap.exporting.rows import COLUMNS, VERSION, OtherRun, Selection, select
from recap.exporting.tars import CaptionedTar
from recap.run_status import status

__all__ = ["CaptionView"]


def _keep(run: str, source: Published) -> OtherRun:
    """The selection that says which rows are written. UserError where it lacks shards of the run."""
    found = OtherRun(run, "status")
    if lacking := found.lacks(shard.shard for shard in source):
        raise UserError(
            f"export: --keep {run} lacks {len(lacking):,} shards (first: {lacking[0]}), by uri and by id. Finish it "
            f"(python -m hpc.status {run}), or name the selection of these samples."
        )
    return found


def _progress(source: Published) -> Iterator[PublishedShard]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(list(source), description="export")


def _others(values: list[str]) -> dict[str, OtherRun]:
    names = [name for name, _, _ in COLUMNS]
    found: dict[str, OtherRun] = {}
    for value in values:
        name, _, origin = value.partition("=")
        run, _, field = origin.rpartition(":")
        if name not in names or not run:
            raise UserError(f"export: --add {value}: write COLUMN=RUN:FIELD; columns are {', '.join(names)}")
        found[name] = OtherRun(run, field)
    return found


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recap.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory of a captioning job")
    parser.add_argument("out", type=Path, help="folder to make")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--webdataset", action="store_true", help="tars with image, original text and caption")
    kinds.add_argument("--energon", action="store_true", help="tars of captions beside links to the run's, for Energon")
    kinds.add_argument("--jsonl", action="store_true", help="JSON lines in the place of parquet")
    kinds.add_argument("--lance", action="store_true", help="a Lance data set (needs pylance)")
    parser.add_argument("--add", action="append", default=[], metavar="COLUMN=RUN:FIELD", help="a field of another run")
    parser.add_argument("--where", default="", metavar="CONDITION", help="rows to keep (default: all with a caption)")
    parser.add_argument("--keep", default="", metavar="RUN", help="a selecting job: rows that are ok there, no others")
    parser.add_argument("--columns", default="", metavar="A,B,…", help="columns to write (default: the published ones)")
    parser.add_argument(
        "--shard-size",
        "--rows-per-file",
        metavar="SIZE",
        help=f"of a file: rows (default: {ROWS:,}), or bytes as 500MB",
    )
    for option, of in zip(OPTIONS, ("captions", "images"), strict=True):
        about = f"of the {of}, for the card: cc-by-4.0, … or 'other: ITS NAME'"
        parser.add_argument(option, option.replace("licence", "license"), default="", metavar="ID", help=about)
    parser.add_argument("--partial", action="store_true", help="export a run that is not complete")
    return parser


def _kind(args: argparse.Namespace) -> str:
    """UserError where what it needs is not installed."""
    if args.lance:
        library()
        return LANCE
    return TARS if args.webdataset else ENERGON if args.energon else "jsonl" if args.jsonl else "parquet"


@command
def main(arguments: list[str] | None) -> int:
    typed = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(typed)
    stated = (licence(args.caption_licence, OPTIONS[0]), licence(args.image_licence, OPTIONS[1]))
    if (args.webdataset or args.energon) and (args.columns or args.shard_size):
        raise UserError("export: --columns and --shard-size are of parquet and JSON lines: a tar is a tar of the run.")
    wanted = size(args.shard_size) if args.shard_size else Size()
    source = Published(args.run)
    missing = source.missing()
    if missing and not args.partial:
        what = f"{len(missing):,} of {len(source.shards):,} shards are not finished (first: {missing[0]})"
        warn.print(f"[red]export: {escape(what)}. Finish the run, or say --partial.[/]")
        return Exit.INCOMPLETE
    others, selection = _others(args.add), select(source, args.columns, args.where)
    selection = replace(selection, keep=_keep(args.keep, source)) if args.keep else selection
    kind = _kind(args)
    with parts_of(args.out.absolute(), _asked(args, kind, wanted, source, others, selection)) as parts:
        account = _write(parts, kind, source, others, selection, wanted)
        SameImages().tell(account.without_digests)
        told = CardFacts(*stated, ["python", "-m", "recap.export", *typed], _effort(source.run.path))
        write_card(parts.out, source, account, selection, kind, told)
    incomplete = f" · {len(missing):,} shards are missing" if missing else ""
    console.print(f"{account.rows:,} captions in {args.out.absolute()}{incomplete}", markup=False)
    if kind == ENERGON:
        console.print("next: " + "\n      ".join(commands(args.out.absolute())), markup=False)
    for said in _said(account, selection.unfilled(others), stated):
        warn.print(f"[yellow]export: {escape(said)}.[/]")
    return Exit.COMPLETE


def _write(
    parts: Parts, kind: str, source: Published, others: dict[str, OtherRun], selection: Selection, size: Size
) -> Account:
    """All but the card."""
    asked = ExportRequest(selection, others, captioner_of(source))
    if kind not in (TARS, ENERGON):
        return _write_rows(parts, kind, source, asked, size)
    work: CaptionedTar | Sidecar
    if kind == TARS:
        wanted = Wanted.everything(source.submission.config.get("data") or {})
        work = CaptionedTar(parts, source.column, wanted, asked)
    else:
        work = Sidecar(parts, source.column, asked)
        write_metadataset(parts.out)
    account = Account()
    for _, marker in parts.make(kind, work, _progress(source)):
        account.merge(Account.of(marker))
    return account


def _write_rows(parts: Parts, kind: str, source: Published, asked: ExportRequest, size: Size) -> Account:
    """Rows of all shards, and then the files of them."""
    (account, counts), schema = write_rows(parts, _progress(source), asked), asked.selection.schema
    if kind == LANCE:
        write_lance(parts, counts, schema, size)
        return account
    each = rows_of_a_file(parts, counts, kind, schema, size)
    write_files(parts, counts, kind, schema, each)
    if kind == "parquet":
        write_places(parts.out, source, account.each, each)
    return account


def _asked(
    args: argparse.Namespace,
    kind: str,
    size: Size,
    source: Published,
    others: dict[str, OtherRun],
    selection: Selection,
) -> dict[str, Any]:
    """All that decides what the files hold: an export that was killed goes on where the same is asked for."""
    runs = {"": source, **{name: added.published for name, added in others.items()}}
    runs |= {"keep": selection.keep.published} if selection.keep else {}
    return {
        "toolkit": version(), "schema": VERSION, "kind": kind, "size": asdict(size), "columns": selection.schema.names,
        "where": args.where, "add": args.add,
        "runs": {name: [str(run.run.path), run.identity, run.digest()] for name, run in runs.items()},
    }  # fmt: skip


def _said(account: Account, unfilled: str, stated: tuple[Licence | None, Licence | None]) -> Iterator[str]:
    if left_out := account.left_out.most_common(5):
        yield "left out of the tars: " + "; ".join(f"{number:,} {reason}" for reason, number in left_out)
    if found := account.downloads.told():
        yield found
    if unfilled:
        yield unfilled
    if unstated := [option for option, found in zip(OPTIONS, stated, strict=True) if found is None]:
        yield f"the card says of its licences that they are not stated: {' and '.join(unstated)} state them"


def _effort(run: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = status(run).get("effort")
    except UserError:  # the captions are there, whatever is the matter with what tells of the work
        return None
    return found


if __name__ == "__main__":
    sys.exit(main())
