"""What a pipeline will do and what it will cost, stage by stage, before it does anything.

A stage's samples come from its plan where its input is there (else from `samples:`), its rate from `rate:` or from an
earlier run with the same identity. There is no built-in rate.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from hpc import config as configs
from hpc.base import snapshot
from hpc.base.command import console, warn
from hpc.base.errors import Exit, UserError
from hpc.base.text import duration, hours_text, short
from hpc.config.cluster_checks import slurm_seconds
from hpc.gang import launch as gang_launch
from hpc.gang import sweep
from hpc.launching import end_dry_run
from hpc.map import forecast
from hpc.map.launch import prepare
from hpc.pipeline.definition import Pipeline, PipelineRequest, Stage
from hpc.pipeline.directory import PipelineRun, stage_facts
from hpc.pipeline.stage import launch_command
from hpc.run.directory import Submission
from hpc.slurm.jobs import StageLauncher
from hpc.slurm.submission import bootstrap_line


@dataclass
class Outlook:
    """What a stage will do and cost.

    jobs: how many, and how large, for people. devices: GPUs (without: engines or ranks) that work at the same time.
    samples: to do; rate: samples a second of one device; where: the source of the rate; 0.0 and "" where not known.
    note: what is not known yet. wrong: what would stop the launch of a stage whose needs are finished.
    """

    jobs: str
    devices: int
    samples: float = 0.0
    rate: float = 0.0
    where: str = ""
    note: str = ""
    wrong: str = ""

    @property
    def hours(self) -> float | None:
        """Hours of one device; None where samples or rate are not known."""
        return self.samples / self.rate / 3600 if self.samples and self.rate else None


def check(stage: Stage, supersede: bool) -> None:
    """Raise UserError for what would stop the launch of a stage whose needs are finished."""
    if wrong := estimate_stage(stage, [], supersede).wrong:
        raise UserError(f"stage {stage.name}: {wrong}")


def estimate_stage(stage: Stage, unfinished_needs: list[str], supersede: bool) -> Outlook:
    """The outlook of a stage. While needs of it are not finished, its input may not exist yet."""
    if stage.config is None:
        gpus = stage.cluster.gpus_per_node
        found = Outlook(f"1 job · {gpus} GPUs" if gpus else "1 job", max(1, gpus))
    else:
        look = _map if stage.kind == "map" else _gang
        found = look(stage, stage.config, unfinished_needs, supersede)
    found.samples = found.samples or stage.samples or 0.0
    if stage.rate is not None:
        found.rate, found.where = stage.rate, "given"
    return found


def _without_slurm(config: configs.Config, source: str) -> configs.Config:
    """A stage's config with kind "local", so that nothing is asked of Slurm."""
    cluster = {**config.resolved["cluster"], "kind": "local"}
    return configs.check({**config.resolved, "cluster": cluster}, source)


def _map(stage: Stage, given: configs.Config, unfinished_needs: list[str], supersede: bool) -> Outlook:
    config, cluster = _without_slurm(given, stage.source), stage.cluster
    engines = cluster.devices_per_node
    what = f"{cluster.unit('engine')}s"
    slots, measured, shards, wrong = cluster.slots, None, [], ""
    try:
        if unfinished_needs:
            shards = config.operator().plan()  # its shards may be there before its model is
        else:
            job = prepare(config, supersede=supersede, dry_run=True)
            shards, slots = job.shards, job.slots
            measured = forecast.find(given, job.identity)
    except (UserError, OSError) as error:
        wrong = "" if unfinished_needs else str(error)
    at_once = min(slots, cluster.parallel or slots)
    found = Outlook(f"array of {slots} × {engines} {what}", at_once * engines, wrong=wrong)
    found.samples = forecast.samples(shards, measured)
    if measured:
        found.rate, found.where = measured.rate, measured.where
    if unfinished_needs and not shards:
        found.note = f"planned after {', '.join(unfinished_needs)}"
    return found


def _gang(stage: Stage, given: configs.Config, unfinished_needs: list[str], supersede: bool) -> Outlook:
    config, cluster = _without_slurm(given, stage.source), stage.cluster
    arms = sweep.arms(config) if config.run.sweep else {"": config}
    nodes, ranks = config.run.gang.nodes, cluster.workers_per_node
    what = f"{cluster.unit('rank')}s"
    shape = f"{nodes} {'node' if nodes == 1 else 'nodes'} × {ranks} {what}"
    at_once = min(len(arms), cluster.parallel or len(arms))
    found = Outlook(f"{len(arms)} arms × {shape}" if config.run.sweep else shape, at_once * nodes * ranks)
    if unfinished_needs:
        found.note = f"checked after {', '.join(unfinished_needs)}"
    for arm in arms.values():
        found.samples += _samples(arm)
        try:
            if not unfinished_needs:
                gang_launch.prepare(arm, supersede=supersede)
        except (UserError, OSError) as error:
            found.wrong = str(error)
    return found


def _samples(config: configs.Config) -> float:
    """Samples of a whole training; 0.0 where only the data tells, or the trainer has no method `samples`."""
    count: Any = getattr(config.trainer(), "samples", None)
    return float(count()) if count else 0.0


def dry_run(pipeline: Pipeline, run: PipelineRun, finished: list[str], todo: list[str], asked: PipelineRequest) -> int:
    """Print every stage, its dependencies, its cost, and what will be run; leave nothing unfinished_needs."""
    looks = {}
    for name in todo:
        unfinished_needs = [need for need in pipeline.stages[name].needs if need not in finished]
        looks[name] = estimate_stage(pipeline.stages[name], unfinished_needs, asked.supersede)
    console.print(_table(pipeline, looks, finished), width=max(console.width, 110))
    console.print(_total(pipeline, looks))
    console.print(f"output    {short(run.path)}/<stage>/\n", markup=False)
    code = snapshot.digest()
    for number, name in enumerate(todo):
        stage = pipeline.stages[name]
        submission = Submission.placeholder(**stage_facts(pipeline, stage, run, code, asked.supersede))
        if pipeline.cluster.kind == "slurm":
            after = [f"<{need}>" for need in stage.needs if need in todo]
            script = StageLauncher(run, submission, stage.cluster, after, pipeline.cluster.dependency).script()
            if number:
                script = script.replace(bootstrap_line(), "boot='...'  # as in the first script")
            sys.stdout.write(f"### stage job of {name} ({stage.what})\n{script}\n\n")
        else:
            argv = submission.config["argv"] or launch_command(run, name, asked.supersede)
            sys.stdout.write(f"{name}: {shlex.join(argv)}\n")
    planned = end_dry_run("started")
    wrong = {name: found.wrong for name, found in looks.items() if found.wrong}
    for name, why in wrong.items():
        warn.print(f"[red]stage {name}: {escape(why)}[/]")
    return Exit.USAGE if wrong else planned


def _table(pipeline: Pipeline, looks: dict[str, Outlook], finished: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "after", "kind", "jobs", "samples", "cost"):
        table.add_column(column, overflow="fold", no_wrap=column in ("stage", "kind"))
    for name, stage in pipeline.stages.items():
        found = looks.get(name)
        if found is None:
            said = ["", "", "finished" if name in finished else "not asked for"]
        else:
            said = [found.jobs, _count(stage, found), _cost(stage, found)]
        table.add_row(name, ", ".join(stage.needs), stage.kind, *map(escape, said))
    return table


def _count(stage: Stage, found: Outlook) -> str:
    if stage.command and not found.samples:
        return ""
    return f"{found.samples:,.0f}" if found.samples else "?"


def _cost(stage: Stage, found: Outlook) -> str:
    unit = _unit(stage)
    if found.hours is not None:
        said = f"{hours_text(found.hours, unit)} ≈ {duration(3600 * found.hours / found.devices)}"
        said += f" at {found.rate:,.4g} samples/s a {unit} ({found.where})"
    elif found.wrong:
        said = "cannot be launched, see below"
    elif stage.config is not None:
        said = "unknown: no rate" if not found.rate else "unknown: how many samples"
    else:
        limit = _limit(stage)
        said = f"at most {hours_text(limit, unit)} (its time limit)" if limit else "no GPU"
    return "; ".join(filter(None, [said, found.note]))


def _limit(stage: Stage) -> float:
    """GPU hours that a command can take at most; 0 of a job, or without GPUs."""
    gpus = stage.cluster.gpus_per_node if stage.command else 0
    return gpus * slurm_seconds(stage.cluster.time) / 3600


def _unit(stage: Stage) -> str:
    return stage.cluster.unit("rank")


def _total(pipeline: Pipeline, looks: dict[str, Outlook]) -> str:
    """The sum over stages whose cost is known, and the names of the others."""
    if not looks:
        return "\nnothing is left to do"
    hours: dict[str, float] = {}
    unknown = []
    for name, found in looks.items():
        stage = pipeline.stages[name]
        if found.hours is not None:
            hours[_unit(stage)] = hours.get(_unit(stage), 0.0) + found.hours
        elif stage.config is not None:
            unknown.append(name)
    said = " + ".join(hours_text(value, unit) for unit, value in hours.items()) or "unknown"
    if limit := sum(_limit(pipeline.stages[name]) for name, found in looks.items() if found.hours is None):
        said += f" + at most {hours_text(limit, 'GPU')} of commands"
    price = pipeline.cluster.price
    if price is not None and "GPU" in hours:
        said += f" · {pipeline.cluster.currency}{hours['GPU'] * price:,.2f} at {price:.2f}/h"
    if unknown:
        said += f"; without {', '.join(unknown)}\n          A stage's `rate:` (or {unknown[0]}.rate=... here) is the "
        said += "samples/s of one GPU; without GPUs of an engine or rank. `samples:` where no input says them"
    return f"\ntotal     {said}"
