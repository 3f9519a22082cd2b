"""What a run has done, what it is doing, what went wrong and how long it will take: from the run directory alone.

    python -m hpc.status runs/demo              one picture
    python -m hpc.status runs/demo --watch      until the run ends
    python -m hpc.status runs/demo --by node    a row for each node (or error, or slot)
    python -m hpc.status runs/demo --damaged    shards whose input is damaged: id, reason, detail, input, tab-separated
    python -m hpc.status runs/demo --json       for scripts (`schema` counts the format's versions)
    python -m hpc.status runs/demo --openmetrics    for Prometheus: counters and gauges, see docs/operating.md
    python -m hpc.status runs/demo --html page.html    one self-contained page of a map run, for a browser
    python -m hpc.status runs/                  all runs of a folder, a line each (--json, --watch, --openmetrics)

Reads directory listings and journals; no stat per shard. Where squeue answers, its view of the slots is shown beside.
`hours` says where the time of the GPUs (without GPUs: of engines) went, by kind; where sacct answers, the sum is what
Slurm counts; `bound`, whether engines wait for input. See docs/operating.md.

With $HPC_WEBHOOK, a run that has ended with no slot left to tell of it is told there, see docs/operating.md.

Exit codes: 0 complete, 1 incomplete, 2 nothing is left to do, but shards failed or gave nothing, or no sample is ok; 64
wrong usage. With --damaged, --openmetrics and --html: 0 once printed or written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from hpc import any_status, overview
from hpc.base.command import command, end_on_closed_pipe
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.no_pandas import without_pandas
from hpc.base.text import printable
from hpc.kinds import View
from hpc.map import breakdown, orphan_events
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run
from hpc.run.events import unsent


def _view(run: Run, by: str | None) -> View:
    """The view of a run of any kind, or of all runs in a folder."""
    if overview.runs(run.path):
        return View(lambda: overview.read_status(run.path), overview.render)
    return any_status.view(run, by)


def _print_damaged(run: Run) -> int:
    """A line for each damaged shard, for `cut` and `sort`."""
    from hpc.run.published import Published

    for shard in Published(run.path):
        if damage := shard.marker.get("damage"):
            fields = (shard.shard.id, damage["reason"], damage["detail"], shard.shard.uri)
            sys.stdout.write("\t".join(map(printable, fields)) + "\n")
    return Exit.COMPLETE


def _print_openmetrics(run: Run) -> int:
    """Print the metrics of a map run, or of all map runs in a folder or pipeline. UserError where there is none."""
    from hpc.map import openmetrics

    found, others = _map_runs(run)
    if not found:
        raise UserError(
            f"status: --openmetrics is of map runs, and {run.path} is or holds none. The numbers of a training are in "
            "its metrics.jsonl, and in W&B or TensorBoard with train.trackers."
        )
    for name in others:
        sys.stderr.write(f"{printable(name)} is no map run: left out\n")
    for one in found.values():
        orphan_events.send(one)
    sys.stdout.write(openmetrics.text(found))
    return Exit.COMPLETE


def _write_html(run: Run, file: Path) -> int:
    """Write the page of a map run. Raises UserError for runs of other kinds."""
    from hpc.map import status_page

    found, _ = _map_runs(run)
    if run.path not in [one.path for one in found.values()]:
        parts = f" Its map runs: {', '.join(str(one.path) for one in found.values())}." if found else ""
        raise UserError(f"status: --html shows one map run, which {run.path} is not.{parts}")
    orphan_events.send(run, status_page.write(run, file))
    Console(highlight=False, soft_wrap=True).print(f"{file} · {file.stat().st_size / 1024:,.0f} KiB", markup=False)
    return Exit.COMPLETE


def _map_runs(run: Run) -> tuple[dict[str, Run], list[str]]:
    """(map runs by name, those of pipelines as PIPELINE/STAGE; names of runs of other kinds) in a run or a folder."""
    found: dict[str, Run] = {}
    others: list[str] = []
    for one in overview.runs(run.path) or [run]:
        pipeline = PipelineRun(one.path)
        if pipeline.record.exists():
            jobs = {f"{one.name}/{stage}": Run(one.path / stage) for stage in pipeline.launched()["stages"]}
        else:
            jobs = {one.name: one}
        for name, job in jobs.items():
            if job is not run and not job.submissions():
                continue  # a stage that has not begun, or a command
            config = job.latest().config
            if config.get("trainer") or config.get("sweep"):
                others.append(name)
            else:
                found[name] = job
    return found, others


def _with_events_sent(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, after sending the events of a map run that nobody has sent yet, where there is a webhook."""
    if "unsent" in facts:
        orphan_events.send(run, facts)
        facts["unsent"] = unsent(run)
    return facts


def _print_again(run: Run, facts: dict[str, Any]) -> None:
    """Print what can be done with a complete run, and the command that launches one again that is over or stopped."""
    from hpc import relaunch

    if facts["exit"] == Exit.COMPLETE and not ({"runs", "stages", "arms"} & facts.keys() or facts.get("pilot")):
        for number, step in enumerate(relaunch.next_steps(run)):
            sys.stdout.write(f"{'' if number else 'next':<9}{step}\n")

    over = facts["exit"] != Exit.INCOMPLETE or facts.get("cancelled") is not None or facts.get("paused") is not None
    if over and "runs" not in facts:
        again = relaunch.command_for(run)
        what = "the full run" if facts.get("pilot") else "launch again"
        sys.stdout.write(f"{what}: {relaunch.shell_text(again, first=65)}\n")


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.status", description=__doc__)
    parser.add_argument("run", help="the run directory, or a folder of runs")
    parser.add_argument("--watch", action="store_true", help="redraw every 2 s until no shard is left")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument("--damaged", action="store_true", help="list the damaged shards instead, tab-separated")
    parser.add_argument("--by", choices=breakdown.KINDS, help="a table of nodes, errors or slots below")
    parser.add_argument("--openmetrics", action="store_true", help="print the metrics of map runs, for Prometheus")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of a map run, for a browser")
    args = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        if args.damaged:
            return _print_damaged(Run(args.run))
        if args.openmetrics:
            return _print_openmetrics(Run(args.run))
        if args.html:
            return _write_html(Run(args.run), args.html)
        view = _view(Run(args.run), args.by)
        facts = _with_events_sent(Run(args.run), view.read())
        if args.json:
            sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        elif args.watch:
            with Live(view.render(facts), console=console, auto_refresh=False) as live:
                while facts["exit"] == Exit.INCOMPLETE:
                    time.sleep(2)
                    facts = _with_events_sent(Run(args.run), view.read())
                    live.update(view.render(facts), refresh=True)
        else:
            console.print(view.render(facts))
            _print_again(Run(args.run), facts)
    except KeyboardInterrupt:
        return Exit.INCOMPLETE
    return int(facts["exit"])


if __name__ == "__main__":
    end_on_closed_pipe()
    without_pandas()
    sys.exit(main())
