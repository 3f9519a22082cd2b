"""Show the right log and line, without your knowing which slot worked on what.

    python -m hpc.logs runs/demo                       the last lines of each slot that lives
    python -m hpc.logs runs/demo --failed              for each failed shard: reason, file:line and the lines around it
    python -m hpc.logs runs/demo --shard 00031001      what happened to one shard, then every line that names it
    python -m hpc.logs runs/demo --slot 3 --follow     one slot, as it writes
    python -m hpc.logs runs/recap-demo                 a pipeline: the last lines of each stage that is not finished

Where there is nothing to show it says why: no such shard or slot, none has started, nothing failed. A sweep shows each
of its arms; a pipeline with --failed shows the logs of its jobs, too; a training that has no heartbeat shows the newest
log in its folder.

Exit codes: 0, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hpc.base import heartbeat, journal
from hpc.base.command import command, end_on_closed_pipe
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.text import printable
from hpc.gang import sweep_status
from hpc.pipeline import status as pipeline_status
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run, Submission
from hpc.run.plan import Plan, as_id

TAIL = 10
AROUND = 4  # lines that are shown before the one where a shard failed


def logs(run: Run, slot: int | None = None, node: str | None = None) -> list[tuple[dict[str, Any], Path]]:
    """(newest heartbeat, log) of each slot that has one, newest submission last."""
    found: dict[Path, dict[str, Any]] = {}
    order = {s.uuid: number for number, s in enumerate(run.submissions())}
    lives = sorted(
        heartbeat.read_all(run.slots),
        key=lambda f: (order.get(f.get("submission", ""), -1), f.get("slot", 0), f.get("life", 0)),
    )
    for facts in lives:
        if facts.get("log") and slot in (None, facts.get("slot")) and node in (None, facts.get("host")):
            found[Path(facts["log"])] = facts
    return [(facts, path) for path, facts in found.items() if path.exists()]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _short(run: Run, path: Path) -> str:
    return str(path.relative_to(run.path)) if path.is_relative_to(run.path) else str(path)


def tails(run: Run, chosen: list[tuple[dict[str, Any], Path]], count: int) -> Iterator[str]:
    for facts, path in chosen:
        yield f"slot {facts.get('slot')} · {facts.get('host')} · {facts.get('state')} · {_short(run, path)}"
        lines = _lines(path)
        yield from (f"{number}: {printable(line)}" for number, line in list(enumerate(lines, 1))[-count:])
        yield ""


def failed(run: Run) -> Iterator[str]:
    """Why the run paused, engines that could not start, then each failed shard with the log line where it failed."""
    latest = run.latest()
    told = list(_not_started(run, latest.uuid))
    yield from told
    ledger = run.ledger(latest.identity)
    survey = ledger.failed(run.generations.opened())
    for shard, state in sorted(survey.items()):
        record = ledger.read(shard, f"g{state.generation}.failed")
        yield printable(f"{shard}: {record.get('reason', 'unknown')}")
        if record.get("detail"):
            yield printable(f"    {record['detail']}")
        path = Path(record.get("log") or "")
        if record.get("log") and path.exists():
            lines = _lines(path)
            at = [n for n, line in enumerate(lines) if shard in line and "failed for good" in line]
            if at:
                yield f"    {_short(run, path)}:{at[-1] + 1} on {record.get('host', '')}"
                start = max(0, at[-1] - AROUND)
                yield from (f"    | {printable(line)}" for line in lines[start : at[-1] + 1])
        yield ""
    if not (survey or told):
        yield f"no shard of {run.path} failed, and no engine died in set-up"


def _not_started(run: Run, submission: str) -> Iterator[str]:
    if why := run.control_text("pause"):
        yield printable(f"paused: {why}")
        yield ""
    deaths: dict[str, list[str]] = {}  # logs, by last words
    for path in sorted(run.journals.glob(f"{submission}*.jsonl")):
        for event in journal.read(path)[0]:
            if event["event"] == "engine" and str(event.get("died", "")).startswith("setup: "):
                deaths.setdefault(event["died"], []).append(str(event.get("log") or ""))
    for words, places in deaths.items():
        yield printable(f"engines died {len(places):,} times in {words}")
        yield from (f"    {_short(run, Path(place))}" for place in sorted(set(places)) if place)
        yield ""


def of_shard(run: Run, shard: str) -> Iterator[str]:
    """The events of a shard in the journals, ordered by their writers' clocks; then every log line that names it."""
    events = []
    for path in sorted(run.journals.glob("*.jsonl")):
        found, _ = journal.read(path)
        host = next((str(e.get("host", "")) for e in found if e["event"] == "start"), "")
        events += [(float(e.get("t", 0.0)), host, path.stem, e) for e in found if e.get("shard") == shard]
    hidden = ("t", "event", "shard", "log", "host")
    for t, host, instance, event in sorted(events, key=lambda e: e[0]):
        facts = {k: v for k, v in event.items() if k not in hidden and v not in (None, "")}
        said = " ".join(f"{k}={v}" for k, v in facts.items())
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))
        yield printable(f"{when} {host} {instance} {event['event']} {said}")
    if not events:
        yield f"nothing has happened to shard {shard} yet"
    for _, path in logs(run):
        for number, line in enumerate(_lines(path), 1):
            if shard in line:
                yield f"{_short(run, path)}:{number}: {printable(line)}"


def follow(runs: dict[str, Run], slot: int | None, node: str | None) -> Iterator[str]:
    """New lines as they are written, each with its slot, or with its arm where `runs` has names. Logs of slots that
    start later are included. Ends with Ctrl-C.
    """
    offsets = {path: path.stat().st_size for run in runs.values() for _, path in logs(run, slot, node)}
    while True:
        for name, (facts, path) in [(name, log) for name, run in runs.items() for log in logs(run, slot, node)]:
            with open(path, "rb") as file:
                file.seek(offsets.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            offsets[path] = offsets.get(path, 0) + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                yield f"{name or facts.get('slot')}: {printable(line)}"
        time.sleep(0.5)


def _asked(run: Run, args: argparse.Namespace) -> Iterator[str]:
    """The lines that were asked for. Raises UserError where the run can have no such lines."""
    arms = sweep_status.runs(run)
    lines = _of_arms(arms, args) if arms else _of_run(run, args)
    launched = {name: arm for name, arm in arms.items() if arm.submissions()} or {"": run}
    return chain(lines, follow(launched, args.slot, args.node)) if args.follow else iter(lines)


def _of_run(run: Run, args: argparse.Namespace) -> Iterator[str]:
    latest = run.latest()
    is_training = bool(latest.config.get("trainer"))
    if is_training and args.shard:
        raise UserError(f"logs: {run.path} is a training, it has no shards: python -m hpc.logs {run.path}")
    if args.shard:
        shard = as_id(args.shard)
        _check_shard(run, shard)
        return of_shard(run, shard)
    if args.failed and not is_training:
        return failed(run)
    chosen = logs(run, args.slot, args.node)
    if not chosen:
        return iter(_nothing_chosen(run, latest, args))
    if not (args.slot is not None or args.node or args.follow):
        chosen = [c for c in chosen if c[0].get("state") != "exited"] or chosen
    return tails(run, chosen, args.lines)


def _of_arms(arms: dict[str, Run], args: argparse.Namespace) -> list[str]:
    """The lines of each arm that has what was asked for. Raises UserError where none has."""
    found, refused = [], None
    for name, arm in arms.items():
        try:
            lines = list(_of_run(arm, args)) if arm.submissions() else ["it was not launched yet", ""]
            found += [f"arm {name}", *lines]
        except UserError as error:
            refused = error
    if refused and not found:
        raise refused
    return found


def _of_pipeline(pipeline: PipelineRun, args: argparse.Namespace) -> Iterator[str]:
    jobs = [s for s in pipeline_status.read_status(pipeline)["stages"].values() if s["kind"] != "command"]
    if args.shard or args.slot is not None or args.node or args.follow:
        raise UserError(
            f"logs: {pipeline.path} is a pipeline; shards, slots and nodes are its jobs'. Name one of them: "
            f"{', '.join(stage['path'] for stage in jobs) or 'it has none'}."
        )
    yield from pipeline_status.logs(pipeline, args.lines)
    for stage in jobs if args.failed else []:
        run = Run(stage["path"])
        if stage["state"] != pipeline_status.FINISHED and run.submissions():
            yield from _asked(run, args)


def _check_shard(run: Run, shard: str) -> None:
    known = list(Plan(run.plans, run.latest().plan).ids())
    if shard not in known:
        near = difflib.get_close_matches(shard, known, n=1, cutoff=0.5) if len(known) < 10000 else []
        raise UserError(
            f"logs: {shard} is no shard of {run.path}. "
            + (f"The nearest is {near[0]}." if near else f"Ids look like {min(known)}.")
        )


def _nothing_chosen(run: Run, latest: Submission, args: argparse.Namespace) -> list[str]:
    """Why no slot has a log, and what else there is to read. UserError where a slot was named that is not there."""
    lives = heartbeat.read_all(run.slots)
    if lives and (args.slot is not None or args.node):
        slots = sorted({str(facts.get("slot")) for facts in lives}, key=lambda s: (len(s), s))
        nodes = sorted({str(facts.get("host")) for facts in lives})
        raise UserError(
            f"logs: {run.path} has no log of such a slot. Slots that have started: {', '.join(slots[:20])}; on nodes: "
            f"{', '.join(nodes[:20])}."
        )
    said = f"no slot of {run.path} has started yet" if not lives else "the slots have no logs that can be read here"
    from hpc.slurm.queue import why_pending  # and submitit with it

    reasons = why_pending([job for s in run.submissions() for job in s.job_ids])
    if reasons:
        said += f": Slurm has it waiting ({', '.join(reasons)})"
    elif latest.error:
        said += f": {latest.error}"
    files = sorted((p for p in run.logs.glob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
    if not files:
        return [printable(said)]
    lines = _lines(files[-1])
    shown = [f"{number}: {printable(line)}" for number, line in list(enumerate(lines, 1))[-args.lines :]]
    return [printable(said), f"the newest of {run.logs}: {files[-1].name}", *shown]


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.logs", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--failed", action="store_true", help="what the logs say of each failed shard")
    parser.add_argument("--shard", help="what happened to this shard, and every line that names it")
    parser.add_argument("--slot", type=int, help="only this slot")
    parser.add_argument("--node", help="only slots on this node")
    parser.add_argument("--follow", action="store_true", help="print lines as they are written, until Ctrl-C")
    parser.add_argument("--lines", type=int, default=TAIL, help=f"lines of each log (default: {TAIL})")
    args = parser.parse_args(arguments)
    try:
        pipeline = PipelineRun.at(args.run)
        lines = _of_pipeline(pipeline, args) if pipeline else _asked(Run(args.run), args)
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    return Exit.COMPLETE


if __name__ == "__main__":
    end_on_closed_pipe()
    sys.exit(main())
