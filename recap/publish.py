"""Send an export of a run to the Hugging Face Hub: from one process, once the run is complete; killed, it goes on.

    python -m recap.publish RUN REPO --caption-licence cc-by-4.0 --image-licence "other: each image's own"
                                                   makes RUN/export where it is not there (parquet), and sends it
    python -m recap.publish RUN REPO --export OUT  sends what python -m recap.export made of RUN with other options
    python -m recap.publish RUN REPO --update      makes REPO what the export is now, where it holds other content

REPO is a data set, name/of-it, made where it does not exist (--private: for you alone). The token is that of
`hf auth login`, or HF_TOKEN. Files go up in several commits; what the Hub has is not sent again.

Exit codes: 0 sent, 1 the run is not complete, 64 wrong usage, or the Hub refuses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.lock import hold
from hpc.run.published import Published
from recap import export
from recap.exporting.card import NAME
from recap.exporting.hub import send
from recap.exporting.licences import NOT_STATED, OPTIONS


@command
def main(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m recap.publish", description=__doc__)
    parser.add_argument("run", help="the run directory of a captioning job")
    parser.add_argument("repo", help="data set on the Hub: name/of-it")
    parser.add_argument("--export", type=Path, metavar="OUT", help="an export of the run (default: RUN/export)")
    parser.add_argument("--private", action="store_true", help="a data set that is made is yours alone")
    parser.add_argument("--update", action="store_true", help="replace and delete what the data set has otherwise")
    for option in OPTIONS:
        parser.add_argument(option, option.replace("licence", "license"), default="", help="see recap.export --help")
    args = parser.parse_args(arguments)
    if os.environ.get("SLURM_ARRAY_TASK_ID"):
        raise UserError("publish: this is a task of a job array. One process publishes, after the run: start it alone.")
    source = Published(args.run)
    with hold(source.run.control / "publishing", "publish"):
        folder = (args.export or source.run.path / "export").absolute()
        stated = [
            value
            for option, found in zip(OPTIONS, (args.caption_licence, args.image_licence), strict=True)
            for value in ([option, found] if found else [])
        ]
        if not folder.exists() and not args.export:
            made = export.main([str(source.run.path), str(folder), *stated])
            if made != Exit.COMPLETE:
                return made
        elif stated:
            raise UserError(f"publish: {folder} is there already, with its card: write its licences into {NAME}.")
        check_card(folder, source)
        sent = send(folder, args.repo, f"{source.run.name} {source.identity}", private=args.private, update=args.update)
    known = f" · {sent.known:,} were there" if sent.known else ""
    console.print(f"{sent.files:,} files, {sent.bytes / 2**20:,.1f} MiB sent to {sent.address}{known}", markup=False)
    return Exit.COMPLETE


def check_card(folder: Path, source: Published) -> None:
    """UserError where a folder has no card, one of other captions, or one that says less than others need."""
    card = folder / NAME
    if not card.is_file():
        raise UserError(f"publish: {folder} is no export: it has no {NAME}. Make one: python -m recap.export RUN OUT")
    text = card.read_text(encoding="utf-8")
    try:
        head = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---")) if text.startswith("---\n") else None
    except yaml.YAMLError as error:
        raise UserError(f"publish: the head of {card} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(head, dict):
        raise UserError(f"publish: {card} has no head (--- … ---) in which the Hub finds licence and files.")
    if not head.get("license") or NOT_STATED in text:
        what = "`license` in its head" if not head.get("license") else f"“{NOT_STATED}” in its text"
        raise UserError(
            f"publish: {card} states not all licences: {what}. Write them there, or export anew with "
            f"{' and '.join(OPTIONS)} (of the captions, of the images)."
        )
    if source.identity not in text:
        raise UserError(
            f"publish: {card} does not name {source.identity}, the newest captions of {source.run.path}: it is of "
            "another run, or older. Export anew, or give the run that it is of."
        )


if __name__ == "__main__":
    sys.exit(main())
