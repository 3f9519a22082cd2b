"""Writes a sampling run's images as webdataset tars, and a picture of the first prompts.

    python -m recap.dit.write_images runs/samples OUT              OUT/<shard>.tar (png, txt, json) and OUT/grid.png
    python -m recap.dit.write_images runs/samples OUT --rows 16    prompts of the picture; a column for each guidance
    python -m recap.dit.write_images runs/samples OUT --no-tars    the picture alone
    python -m recap.dit.write_images runs/samples OUT --partial    although shards are missing

    dataset = webdataset.WebDataset("OUT/prompts-{000000..000029}.tar", shardshuffle=False)
    for image, prompt, about in dataset.decode("pil").to_tuple("png", "txt", "json"): ...

The json has key, prompt, guidance, seed and cut. The name of a member is its key with %2E for dots, since webdataset
ends a key at the first dot. OUT is written atomically.

Exit codes: 0 written, 1 the run is not complete, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.markup import escape

from hpc.base import object_store
from hpc.base.errors import Exit, Parser, UserError
from hpc.operator import OK
from hpc.run.published import Published, PublishedShard
from recap.captioned_tars import safe_name
from recap.dit.contact_sheet import as_png, contact_sheet
from recap.dit.sample_job import FIELDS

_ROWS = 64  # rows of a column that are held in memory at a time


def rows_of(shard: PublishedShard) -> Iterator[dict[str, Any]]:
    """The rows of a shard, in order: key, image, prompt, guidance, seed, cut, status. UserError where it has no
    images."""
    with object_store.fetched(shard.location) as path, pq.ParquetFile(path) as file:
        wanted = ["key", *(name for name, _ in FIELDS), "status"]
        if missing := [name for name in wanted if name not in file.schema_arrow.names]:
            raise UserError(f"images: {path} has no field {missing[0]!r}: name a run of recap.dit.sample_job.")
        for batch in file.iter_batches(_ROWS, columns=wanted):
            yield from batch.to_pylist()


def member_name(key: str) -> str:
    """A key as a member's name: webdataset reads it as one key, and it cannot leave the folder that it is unpacked in.

    >>> member_name("people/0001.a@4.5"), member_name("/etc/x")
    ('people/0001%2Ea@4%2E5', '%2Fetc/x')
    """
    return safe_name(quote(key, safe="/@+=, ").replace(".", "%2E"))


def write_tars(source: Published, folder: Path) -> int:
    """Write folder/<shard>.tar for each shard; return the number of images."""
    import webdataset  # imports torch

    total = 0
    for shard in source:
        with webdataset.TarWriter(str(folder / f"{shard.shard.id}.tar"), encoder=False, mtime=0) as writer:
            for row in rows_of(shard):
                if row["status"] == OK:
                    about = {name: row[name] for name in ("key", "prompt", "guidance", "seed", "cut")}
                    text = json.dumps(about, ensure_ascii=False).encode()
                    name = member_name(row["key"])
                    writer.write({"__key__": name, "png": row["image"], "txt": row["prompt"].encode(), "json": text})
                    total += 1
    return total


def grid(source: Published, prompts: int) -> bytes:
    """A PNG with a row for each of the first prompts and a column for each guidance scale. UserError without images."""
    if not (scales := source.submission.config.get("guidance")):
        raise UserError(f"images: {source.run.path} is no run of recap.dit.sample_job.")
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for shard in source:
        held: list[Image.Image | None] = []
        for row in rows_of(shard):
            held.append(Image.open(io.BytesIO(row["image"])) if row["status"] == OK else None)
            if len(held) == len(scales):
                rows.append((row["prompt"] or f"({row['key']})", held))
                held = []
            if len(rows) == prompts:
                break
        if len(rows) == prompts:
            break
    if not rows:
        raise UserError(f"images: {source.run.path} has no finished shard.")
    return as_png(contact_sheet(rows, [f"CFG {scale:g}" for scale in scales]))


def write(source: Published, out: Path, prompts: int, tars: bool) -> int:
    """Write OUT atomically; return the number of images in tars."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"images: {out} exists and is not empty. Choose another folder.")
    making = out.with_name(f".{out.name}-{os.getpid()}")
    making.mkdir(parents=True)
    try:
        total = write_tars(source, making) if tars else 0
        if prompts:
            (making / "grid.png").write_bytes(grid(source, prompts))
        making.rename(out)  # also replaces an empty folder
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m recap.dit.write_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run directory of a sampling job")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--rows", type=int, default=8, help="prompts of grid.png; 0: no picture (default: 8)")
    parser.add_argument("--no-tars", action="store_true", help="the picture alone")
    parser.add_argument("--partial", action="store_true", help="write what there is of a run that is not complete")
    args = parser.parse_args(arguments)
    if args.rows < 0 or (args.no_tars and not args.rows):
        parser.error(f"--rows {args.rows}: there is nothing to write")
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        source = Published(args.run)
        if (missing := source.missing()) and not args.partial:
            what = f"{len(missing):,} of {len(source.shards):,} shards are not finished (first: {missing[0]})"
            errors.print(f"[red]images: {escape(what)}. Finish the run, or say --partial.[/]")
            return Exit.INCOMPLETE
        total = write(source, args.out.absolute(), args.rows, not args.no_tars)
    except (UserError, pa.ArrowException) as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    console.print(f"{total:,} images in {args.out}" if total else f"{args.out / 'grid.png'}")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
