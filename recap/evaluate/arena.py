"""Captioners side by side on one page: the suite's metrics, win rates, how far metrics agree, and the captions.

    python -m recap.evaluate.arena mine=runs/mine theirs=runs/theirs --out arena.html \\
        --battles mine:theirs=runs/battle --verdicts mine=runs/judged-mine theirs=runs/judged-theirs \\
        -- mine classics runs/mine --references runs/human -- theirs classics runs/theirs --references runs/human \\
        -- mine rating judge=runs/rating-mine -- theirs rating judge=runs/rating-theirs
    python -m recap.evaluate.arena mine=runs/mine theirs=runs/theirs --json        the numbers, for scripts
    python -m hpc.launch configs/pipeline/arena.yaml      asks the judges, measures all metrics, and makes the page

Captions are run directories, exports, or folders of parquet files, of the same images. After each -- come the name of a
captioner and the arguments of python -m recap.evaluate.suite for it; a metric that cannot be measured is listed with
its reason. A battle is a run of configs/systems/caparena.yaml in which the column ours is the first captioner and
theirs the second; a tie is half a win. Verdicts are about a caption's sentences (configs/generate/each.yaml with
lists={statement: caption}, then configs/generate/verify.yaml), or about the statements of a run named by --statements.
The page is one file without scripts that loads nothing. Images whose captions metrics disagree about most come first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from recap.evaluate import arena_data, arena_page, suite
from recap.evaluate.arena_data import Arena, ArenaRequest
from recap.evaluate.arena_pictures import pictures
from recap.evaluate.intervals import Mean


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recap.evaluate.arena", description=__doc__, usage="%(prog)s NAME=CAPTIONS [NAME=CAPTIONS ...] "
        "[options] [-- NAME METRIC ...] [-- NAME METRIC ...]",
    )  # fmt: skip
    parser.add_argument("captioners", nargs="+", metavar="NAME=CAPTIONS", help="run, export or folder of captions")
    parser.add_argument("--out", type=Path, default=Path("arena.html"), help="the page (default: arena.html)")
    parser.add_argument("--battles", nargs="*", default=[], metavar="NAME:NAME=RUN", help="runs that compare two")
    parser.add_argument("--verdicts", nargs="*", default=[], metavar="NAME=RUN", help="runs that judge statements")
    parser.add_argument("--statements", nargs="*", default=[], metavar="NAME=RUN",
                        help="runs of these statements (default: the captions' sentences)")  # fmt: skip
    parser.add_argument("--samples", type=int, default=48, help="images that are shown (default: 48)")
    parser.add_argument("--images", nargs="+", default=[], metavar="TARS",
                        help="where the pictures are (default: where the captions' runs read them)")  # fmt: skip
    parser.add_argument("--picture-mb", type=float, default=8.0, help="of pictures on the page, at most (default: 8)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, too")
    return parser


def _named(given: Sequence[str], what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, sign, place = text.partition("=")
        if not sign or not name or not place:
            raise UserError(f"arena: {what} {text!r}: expected NAME=RUN.")
        if name in found:
            raise UserError(f"arena: {what}: {name!r} is given twice.")
        found[name] = Path(place)
    return found


def _known(names: Sequence[str], captioners: dict[str, Path], what: str) -> None:
    for name in names:
        if name not in captioners:
            raise UserError(f"arena: {what}: no captioner is called {name!r}. There are {', '.join(captioners)}.")


def asked(args: argparse.Namespace, parts: Sequence[Sequence[str]]) -> ArenaRequest:
    """The request that the arguments make. UserError where names do not belong together."""
    captioners = _named(args.captioners, "captions")
    if odd := next((name for name in captioners if ":" in name), None):
        raise UserError(f"arena: {odd!r}: a captioner's name has no ':', which stands between two of --battles.")
    battles = []
    for pair, run in _named(args.battles, "--battles").items():
        names = pair.split(":")
        _known(names, captioners, "--battles")
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"arena: --battles {pair}={run}: expected two captioners, NAME:NAME=RUN.")
        battles.append((names[0], names[1], run))
    verdicts, statements = _named(args.verdicts, "--verdicts"), _named(args.statements, "--statements")
    _known([*verdicts, *statements], captioners, "--verdicts and --statements")
    _known(list(statements), verdicts, "--statements belongs to --verdicts")
    measured = []
    for part in parts:
        if len(part) < 2:
            raise UserError("arena: behind -- stand a captioner's name and what the suite is asked: -- NAME METRIC ...")
        _known(part[:1], captioners, "behind --")
        arguments = suite.parsed(list(part[1:]))
        if arguments.json or arguments.out:
            raise UserError(
                "arena: behind -- stands what the suite is asked; --json and --out stand before the first --."
            )
        measured.append((part[0], arguments))
    return ArenaRequest(captioners, measured, battles, statements, verdicts)


def split(arguments: Sequence[str]) -> list[list[str]]:
    """The arguments, cut into lists at each --."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    return parts


def as_json(arena: Arena) -> dict[str, Any]:
    """All numbers of the page."""
    agreement: dict[str, Any] = {}
    for kind in ("captions", "captioners"):
        pairs = getattr(arena.agreement, kind) if arena.agreement else {}
        agreement[kind] = [{"metrics": list(pair), "spearman": _plain(found)} for pair, found in pairs.items()]
    rates = arena.rates
    return {
        "captioners": {
            c.name: {"captions": len(c.texts), "missing": len(arena.images) - len(c.texts), "left_out": c.left_out}
            for c in arena.captioners
        },
        "metrics": [
            {"metric": line.metric, "name": line.name, "better": ("neither", "higher", "lower")[line.better],
             "values": {name: _plain(value) for name, value in line.values.items()}}
            for line in arena.lines
        ],
        "elo": {name: _plain(found) for name, found in rates.elo.items()} if rates else {},
        "battles": [
            {"of": [pair.one, pair.other], "rate": _plain(pair.rate), "wins": pair.wins, "losses": pair.losses,
             "ties": pair.ties}
            for pair in (rates.pairs if rates else [])
        ],
        "agreement": agreement,
        "false_statements": {
            name: sum(one.verdict == "no" for found in by_image.values() for one in found)
            for name, by_image in arena.statements.items()
        },
        "images": [{"image": image, "conflict": conflict} for image, conflict in arena.images],
        "accounts": [{"of": of, "metric": metric, "account": account} for of, metric, account in arena.accounts],
        "not_measured": [{"of": of, "metric": metric, "why": why} for of, metric, why in arena.failed],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, Mean) else value


@command
def main(arguments: list[str] | None) -> int:
    first, *parts = split(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(first)
    arena = arena_data.made(asked(args, parts))
    shown = [image for image, _ in arena.images[: max(0, args.samples)]]
    seen = pictures(arena, shown, args.images, int(args.picture_mb * 2**20))
    page = arena_page.whole(arena, shown, seen)
    try:
        args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(args.out.absolute(), page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"arena: {args.out} cannot be written: {error.strerror}. Choose another --out.") from error
    if args.json:
        sys.stdout.write(json.dumps(as_json(arena), indent=1, ensure_ascii=False) + "\n")
        return Exit.COMPLETE
    for of, metric, why in arena.failed:
        console.print(f"not measured: {metric} of {of}: {why}", markup=False)
    console.print(f"{args.out} · {args.out.stat().st_size / 2**20:.1f} MiB", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
