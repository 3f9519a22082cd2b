"""Freeze a folder of images into lists, which jobs and trainings read as they read tars.

    python -m recap.data.freeze /data/images LISTS
    python -m hpc.launch configs/clip/own_tars.yaml 'data.shards=[LISTS]' ...

A map job over a folder does it by itself: its lists lie in runs/<name>/inputs, and a training reads the same samples
with data.shards=[runs/<name>/inputs]. The command run again adds lists for new files, and says which are stale.

Exit codes: 0 written, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpc.base.errors import Exit, Parser, UserError
from recap.data.file_list import ENDING
from recap.data.inputs import DataConfig, list_shards


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m recap.data.freeze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of images: path or URL")
    parser.add_argument("lists", type=Path, help="folder for the lists")
    parser.add_argument("--files", type=int, default=1000, metavar="N", help="files of a list (default: 1000)")
    args = parser.parse_args(arguments)
    try:
        data = DataConfig(shards=[args.folder], files_per_shard=args.files)
        data.lists = args.lists.absolute()
        there = sorted(data.lists.glob(f"*{ENDING}"))
        data.keep_root(list_shards(DataConfig(shards=list(map(str, there)))) if there else [])
        shards = list_shards(data)
        data.frozen.write(data.lists)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return Exit.USAGE
    notes = "".join(f"; {line}" for line in data.frozen.notes)
    total = sum(shard.expected or 0 for shard in shards)
    written = f"{len(data.frozen.new):,} of them written"
    sys.stdout.write(f"{total:,} images in {len(shards):,} lists in {args.lists}, {written}{notes}\n")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
