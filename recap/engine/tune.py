"""Tune before you pay: try a job's settings on a sample of its real data, and say what the whole would take with each.

    python -m recap.engine.tune configs/caption/tune.yaml
    python -m recap.engine.tune configs/caption/demo.yaml --grid captioner.slots=16,32 --grid captioner.micro_batch=2,4
    python -m recap.engine.tune job.yaml cluster=slurm --slots 4 --grid grid.yaml --grid cluster.gpus_per_engine=1,2,4
    python -m recap.engine.tune runs/demo-tune                  what a tuning has found so far (--json: as facts)

Each trial starts the engines of one node as the job would, and measures them together. A grid may hold any keys
(captioner.backend, captioner.precision, captioner.server.command.7); few of its points are measured: each trial is
chosen by what the earlier ones showed. What fails is a result: out of memory, never healthy, refused, hung, crashed.

It is a map job, runs/<name>-tune, whose shards are the trials: here or as one Slurm array (--slots nodes), and what was
killed goes on when the command is given again. In the run directory: trials/, tune.json, and the picture tune.html. The
rate of a trial is what a later `hpc.launch --dry-run` with just its settings forecasts with.

Exit codes: those of hpc.launch; 64 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base import atomic
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.text import short
from hpc.config import Config
from hpc.run.directory import Run
from recap.engine.tuning import grid as grids
from recap.engine.tuning import report
from recap.engine.tuning.grid import Grid
from recap.engine.tuning.job import TuneConfig, TuneOperator

_DRAIN_S = 10.0  # a trial that is cut off is done again as a whole


@command
def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    given = Path(args.config)
    if given.is_dir():
        return _show(Run(given), args.json)
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        tree = _tuning(args)
        file = Path(folder) / f"{Path(tree['name']).name}.yaml"
        file.write_text(configs.dump(tree))
        # Another grid has other shards; trials that both have are not done again.
        words = [sys.executable, "-m", "hpc.launch", str(file), "--append"]
        words += ["--dry-run"] * args.dry_run
        code = subprocess.run(words, stdout=sys.stderr if args.json else None, check=False).returncode
    run = Run(Path(tree["runs"]).expanduser().absolute() / tree["name"])
    if args.dry_run or code not in (Exit.COMPLETE, Exit.INCOMPLETE, Exit.SOME_FAILED) or not run.is_run():
        return code
    _show(run, args.json)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m recap.engine.tune", description=__doc__)
    parser.add_argument("config", help="config of a map job, or of a tuning, or the run directory of one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the job's config")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=V,V", help="a key and its values, or a file of such keys"
    )
    parser.add_argument("--trials", type=int, help="trials at most (default: 12)")
    parser.add_argument("--seconds", type=float, help="that a trial measures, when its engines are ready (default: 60)")
    parser.add_argument("--samples", type=int, help="that an engine takes at most in a trial (default: 4000)")
    parser.add_argument("--slots", type=int, default=1, help="nodes that measure at a time (default: 1, searches best)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be tried, and start nothing")
    parser.add_argument("--json", action="store_true", help="what was found as JSON on stdout")
    return parser


def _tuning(args: argparse.Namespace) -> dict[str, Any]:
    """The config of the tuning as a map job."""
    tree = configs.read(Path(args.config))
    given: dict[str, Any] = tree if tree.get("operator") == report.OPERATOR else {}
    if given:
        inner = given.get("job") or {}
        if "config" not in inner:
            raise UserError(f"config: {args.config}: `job.config`: missing. Name the config of the job.")
        overrides = [f"{key}={grids.shown(value)}" for key, value in (inner.get("set") or {}).items()]
        source = [str(inner["config"]), *overrides, *args.overrides]
    else:
        source = [args.config, *args.overrides]
    job = configs.load(source[0], source[1:])
    if job.is_gang:
        raise UserError(f"tune: {source[0]} is a training. Map jobs can be tuned.")
    values = {**(given.get("grid") or {}), **grids.parsed(args.grid)}
    if not values:
        raise UserError("tune: nothing varies. Write --grid captioner.slots=64,128, or `grid:` in a tuning's config.")
    chosen = {name: getattr(args, name) or given.get(name) for name in ("trials", "seconds", "samples")}
    work = {
        "job": job.resolved, "source": source, "grid": Grid.checked(values).values,
        **{name: value for name, value in chosen.items() if value is not None},
    }  # fmt: skip
    return {**_place(job, given.get("name"), args.slots, work), **work}


def _place(job: Config, name: str | None, slots: int, work: dict[str, Any]) -> dict[str, Any]:
    """The keys that every config has: the job's own, but for engines that have a whole node each."""
    run = job.resolved
    node = {"gpus_per_engine": max(1, job.run.cluster.gpus_per_node), "engines_per_node": 1}
    one_trial, _ = TuneOperator(TuneConfig(**work)).longest_wait()
    return {
        "name": name or f"{job.run.name}-tune", "operator": report.OPERATOR, "runs": run["runs"],
        "umask": run["umask"], "map": {**run["map"], "hang_s": 2 * one_trial, "drain_s": _DRAIN_S},
        "cluster": {**run["cluster"], **node, "slots": slots, "parallel": None, "gate": False},
    }  # fmt: skip


def _show(run: Run, as_json: bool) -> int:
    """Print what was found, and keep it beside the trials."""
    found = report.facts(run)
    atomic.replace(run.path / "tune.json", atomic.as_json(found, indent=1))
    atomic.replace(run.path / "tune.html", report.html(found).encode())
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return Exit.COMPLETE
    console.print()
    console.print(report.render(found))
    console.print(f"picture {short(run.path / 'tune.html')}", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
