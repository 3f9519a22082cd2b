"""Is this site fit for runs? A few minutes of what runs ask of Slurm and the file system, with harm done on purpose.

    python -m hpc.drill --cluster mysite --minutes 10       with the profile configs/cluster/mysite.yaml
    python -m hpc.drill --cluster mysite --dry-run          what would be submitted, and where files would lie
    python -m hpc.drill --cluster local runs=/data/runs     without Slurm: the file system, and a small run here

It links, replaces, syncs and reads beside other nodes; has a job requeued, signalled and cancelled; and launches a
small run whose engines and slots it kills and stops. Each line of the verdict says what was tried, what was seen, and
what to set: config keys, or options of the site. Nothing of the site is changed: all files lie in one folder below
`runs`, all jobs carry its name, and both are gone at the end, after Ctrl-C, too. What a drill that was killed has left,
the next one tells of and cleans. `key=value` changes the profile or `map`, as at a launch.

Exit codes: 0 fit, in all that this cluster offers; 1 a line is unfit, or could not be tried (the time was over, Slurm
did not answer), or something could not be cleaned; 64 wrong usage; 143 told to end by TERM.
"""

from __future__ import annotations

import argparse
import errno
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hpc import config as configs
from hpc.base import access, snapshot
from hpc.base.command import command, console, warn
from hpc.base.errors import Exit, Parser, Unanswered, UserError, storage_full
from hpc.base.text import SCHEMA, printable, short
from hpc.config import RunConfig, directory_of
from hpc.drilling import gathering, jobs, slurm_lines, small_run
from hpc.drilling.board import FIT, LINES, UNFIT, Board, Line
from hpc.drilling.file_system import space
from hpc.drilling.lives import Lives
from hpc.drilling.place import PREFIX, Place, clean_earlier
from hpc.drilling.session import Session
from hpc.launching import end_dry_run, say
from hpc.map import preflight

COLOURS = {FIT: "green", UNFIT: "red"}


class Signalled(Exception):
    """TERM came, or HUP since the terminal was closed. Its text is the signal's name."""


def try_all(session: Session) -> None:
    """Try all lines, as far as the time goes. In the end each line is there, if only with why it was not tried."""
    board = session.board
    try_place(session)
    session.code = snapshot.take(session.place.run.code)
    if session.config.cluster.kind == "local":
        gathering.in_processes(session)
        small_run.drill(session)
        slurm_lines.slurm_not_tried(session, "cluster.kind is local")
        return
    try:
        _on_slurm(session)
    except Unanswered:
        board.not_tried(slurm_lines.OF_SLURM, slurm_lines.NO_ANSWER, again=True)
    except UserError as error:
        board.not_tried(slurm_lines.OF_SLURM, str(error), again=True)
    if "link" not in board.lines:
        gathering.judge_here(session, gathering.here(session))
    board.not_tried(gathering.TOGETHER, "no node came")
    board.not_tried(small_run.NAMES, "no job runs")


def _on_slurm(session: Session) -> None:
    if not slurm_lines.answers(session) or not slurm_lines.takes_the_profile(session):
        unfit = session.board.unfit("slurm", "request")
        slurm_lines.slurm_not_tried(
            session, f"unfit: {', '.join(unfit)}" if unfit else slurm_lines.NO_ANSWER, not unfit
        )
        return
    slurm_lines.preemption(session)
    lives = Lives(session)
    session.watched.append(lives.look)
    gathering.on_nodes(session)
    if session.board.fit("start"):
        small_run.drill(session)
    session.wait(lambda: lives.done)
    lives.leave()


def try_place(session: Session) -> None:
    """Judge the lines `access` and `space`."""
    board, place = session.board, session.place
    try:
        said = access.check(place.path)
        board.judge("access", "", "; ".join(said) or "only its owner, or the system's administrator", "")
    except UserError as error:
        words = str(error).removeprefix("launch: ")
        board.judge("access", words, "", "the permissions of the folder that it names, or another `runs`")
    folder = place.folder("space")
    try:
        problem, seen = space(folder, lambda path: preflight.disk_problems(path, session.config.map.min_free_gb))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    board.judge("space", problem, seen, "room or quota for `runs`, another `runs`, or a smaller map.min_free_gb")


# --- the command ----------------------------------------------------------------------------


def _settings(profile: str, overrides: list[str]) -> RunConfig:
    """The config of a drill, from a cluster profile and changes to `cluster`, `map` and `runs`."""
    strange = [o for o in overrides if not re.match(r"(cluster|map)\.|runs=", o)]
    if strange:
        raise UserError(f"drill: `{strange[0]}`: a drill takes cluster.KEY=, map.KEY= and runs=, and has no work.")
    here = Path.cwd() / "drill.yaml"  # beside which configs/cluster/ is looked for, as beside a config
    tree = configs.with_overrides({"cluster": configs.profile(profile, here)}, overrides)
    return configs.check_run({"name": "drill", **tree}, f"cluster {profile}")


def _show(line: Line, out: Console) -> None:
    colour = COLOURS.get(line.verdict, "yellow")
    out.print(f"[{colour}]{line.verdict:<10}[/][bold]{line.name:<11}[/] {escape(printable(line.seen))}")
    if line.verdict == UNFIT:
        out.print(f"{'':<21} tried: {escape(LINES[line.name])}")
    if line.set:
        out.print(f"{'':<21} set: {escape(line.set)}")


def _dry_run(config: RunConfig, args: argparse.Namespace, runs: Path) -> int:
    """What would be submitted, and where files would lie; nothing is written."""
    place = Place(runs / f"{PREFIX}{'0' * 8}")
    say("cluster", f"{args.cluster} · {config.cluster.kind} · {args.nodes} nodes · at most {args.minutes:g} minutes")
    say("files", f"{place.path}/ (another number; made, and removed at the end)")
    for name, words in LINES.items():
        local = config.cluster.kind == "local" and name in slurm_lines.OF_SLURM
        say(name, f"{words}{' (not tried: cluster.kind is local)' if local else ''}")
    if config.cluster.kind == "slurm":
        session = Session(place, config, Board(lambda line: None), args.nodes, args.minutes, snapshot.digest())
        for title, launcher in jobs.planned(session):
            console.print(f"\n# {title}", markup=False)
            options = [line for line in launcher.script().splitlines() if line.startswith("#SBATCH")]
            console.print("\n".join([*options, launcher.worker_command()]), markup=False)
    return end_dry_run()


def _parser() -> Parser:
    parser = Parser(prog="python -m hpc.drill", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes: cluster.KEY=, map.KEY=, runs=")
    parser.add_argument(
        "--cluster", default="auto", metavar="PROFILE", help="as in a config's cluster: (default: auto)"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="at most, before it cleans up (default: 10)")
    parser.add_argument("--nodes", type=int, help="nodes that take part (default: 2, or cluster.slots if that is 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the lines go to stderr")
    parser.add_argument("--keep", action="store_true", help="leave the folder, with the logs; its jobs end")
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted, and where files would lie")
    return parser


def _on_signal(number: int, frame: object) -> None:
    raise Signalled(signal.Signals(number).name)


@command
def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    config = _settings(args.cluster, args.overrides)
    if not 0 < args.minutes <= 24 * 60:
        raise UserError(f"drill: --minutes {args.minutes:g}: expected more than 0, and a day at most.")
    default = 2 if config.cluster.kind == "local" else min(2, config.cluster.slots)
    args.nodes = default if args.nodes is None else args.nodes
    if args.nodes < 1:
        raise UserError(f"drill: --nodes {args.nodes}: expected 1 or more.")
    if "://" in config.runs:
        raise UserError(f"drill: `runs`: {config.runs!r} is an object store. Runs need a POSIX file system.")
    runs = directory_of(config).parent
    if args.dry_run:
        return _dry_run(config, args, runs)
    out = warn if args.json else console
    clean_earlier(runs, lambda text: out.print(text, markup=False))
    return _drill(config, args, runs, out)


def _drill(config: RunConfig, args: argparse.Namespace, runs: Path, out: Console) -> int:
    place, board, begun = Place.new(runs), Board(lambda line: _show(line, out)), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _on_signal)
    code, left = 0, ""
    try:
        place.make()
        out.print(f"drill      {escape(str(place.path))}, at most {args.minutes:g} minutes; Ctrl-C ends and cleans")
        with place.owned():
            try_all(Session(place, config, board, args.nodes, args.minutes))
    except OSError as error:
        name = "space" if storage_full(error) and error.errno != errno.EROFS else "access"
        board.judge(name, f"{place.path}: {error.strerror or error}", "", "`runs` where you may write, and have room")
        board.not_tried(LINES, f"in {short(runs)} nothing can be written")
    except (KeyboardInterrupt, Signalled, SystemExit) as stop:  # rich ends a process whose reader is gone (`| head`)
        out.print("[yellow]stopped: cleaning up[/]")
        board.not_tried(LINES, "the drill was stopped", again=True)
        code = Exit.TERMINATED if str(stop) == "SIGTERM" else Exit.INCOMPLETE
    except BaseException:  # a bug of ours: its traceback, and nothing left behind
        _clean(place, args.keep, out)
        raise
    left = _clean(place, args.keep, out)
    code = code or board.code or (Exit.INCOMPLETE if left else Exit.COMPLETE)
    if args.json:
        facts = {
            "schema": SCHEMA, "cluster": args.cluster, "kind": config.cluster.kind, "folder": str(place.path),
            "seconds": round(time.monotonic() - begun, 1), "fit": code == Exit.COMPLETE, "exit": int(code),
            "left": left, "lines": board.as_records(),
        }  # fmt: skip
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    return code


def _clean(place: Place, keep: bool, out: Console) -> str:
    """Clean up, or keep the folder. Returns why something else is left, "" where nothing is."""
    try:
        left = place.keep() if keep else place.clean()
    except (KeyboardInterrupt, Signalled):
        left = "cleaning was stopped"
    if left:
        out.print(f"[yellow]not cleaned: {escape(left)}. The next drill with these `runs` goes on with that.[/]")
    else:
        out.print(f"kept: {escape(str(place.path))}" if keep else "cleaned: no file and no job of the drill is left")
    return left


if __name__ == "__main__":
    sys.exit(main())
