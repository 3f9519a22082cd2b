"""The launch of a map job: its checks, its record, and its submission as one array of node slots."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape

from hpc import config as configs
from hpc.base import object_store, snapshot
from hpc.base.command import console, warn
from hpc.base.errors import Exit, UserError
from hpc.base.text import file_size, short
from hpc.launching import (
    check_access,
    end_dry_run,
    open_run,
    recover_lost_submissions,
    resolve_cluster,
    say,
    say_next,
    submit_to_slurm,
    what_changed,
)
from hpc.map import forecast, orphan_events, pilot_launch, preflight, survey, webhook
from hpc.operator import FreezesInput, MissingShards, Operator, Shard
from hpc.run import events, lost, plan
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE, FAILED, Claim, State
from hpc.run.pilot import Pilot


@dataclass
class Job:
    """A checked launch, before anything is written."""

    config: configs.Config
    operator: Operator
    run: Run
    shards: list[Shard]
    identity: str
    previous: Submission | None = None
    limit: int | None = None  # how many shards are to be done, where a rerun reopens only some of the plan
    missing: list[Shard] = field(default_factory=list)  # of `shards`: those that do not exist, to be recorded as failed
    changed: list[str] = field(default_factory=list)  # ids of shards whose input changed since the run's plan
    append: bool = False  # the plan holds shards that this launch does not name
    rate: float | None = None  # samples/s of one engine, as --rate says
    pilot: Pilot | None = None  # the pilot that this launch makes, in place of the whole plan

    @property
    def slots(self) -> int:
        """No more slots than there are shards for their engines."""
        cluster = self.config.run.cluster
        engines = cluster.workers_per_node
        return max(1, min(cluster.slots, -(-(self.limit or len(self.wanted)) // engines)))

    @property
    def wanted(self) -> list[Shard]:
        """The shards of this launch; of a pilot those with blocks of it, with these blocks' samples as `expected`."""
        return pilot_launch.shards(self.pilot, self.shards) if self.pilot else self.shards


def prepare(
    config: configs.Config,
    *,
    supersede: bool = False,
    dry_run: bool = False,
    allow_missing: bool = False,
    append: bool = False,
    reopened: Collection[str] = (),
) -> Job:
    """Check everything that can be checked without a cluster. Writes nothing; raises UserError.

    Shards in `reopened` may have another size or etag than in the run's plan: a rerun makes them anew anyway. With
    `append`, shards of the run's plan that this launch does not name stay in it.
    """
    config = resolve_cluster(config, dry_run)
    operator = config.operator()
    preflight.check_waits(config, operator)
    preflight.check_devices(config, operator)
    if config.run.output:
        object_store.check(config.run.output)
    webhook.address()
    run = Run(config.directory)
    append = append or _appended(run, config)
    missing: list[Shard] = []
    planned, damage = _planned(run)
    if isinstance(operator, FreezesInput):
        operator.keep_in(run.frozen)
    if planned:
        operator.continues(planned.shards())
    try:
        shards = operator.plan()
    except MissingShards as error:
        shards, missing = error.found + error.missing, error.missing
        if not allow_missing and not _known_missing(planned, missing):
            raise
    if not shards:
        raise UserError("plan: there are no shards. Check the patterns of `data`.")
    if append and planned:
        named = {shard.id for shard in shards}
        shards += [shard for shard in planned.shards() if shard.id not in named]
    if damage:
        planned = _rewritten_plan(run, shards, damage, supersede and not append, dry_run)
    job = Job(config, operator, run, shards, configs.identity(config, operator), missing=missing, append=append)
    _check_continuation(job, planned, supersede, reopened)
    if config.run.pilot:
        job.pilot = pilot_launch.drawn(config, operator, shards, run if job.previous else None, job.identity)
    return job


def _appended(run: Run, config: configs.Config) -> bool:
    """Whether this is the run's own config.yaml, of a launch with --append: it names that launch's shards alone."""
    known = run.submissions()
    return bool(known) and known[-1].append and Path(config.source).absolute() == run.config_file.absolute()


def _planned(run: Run) -> tuple[plan.Plan | None, plan.DamagedPlan | None]:
    """(the plan of a run that exists already, None) or (None, what is wrong with it); (None, None) for a new run."""
    known = run.submissions()
    if not known:
        return None, None
    try:
        found = plan.Plan(run.plans, known[-1].plan)
        found.table()  # every page, by its checksum
    except plan.DamagedPlan as error:
        return None, error
    return found, None


def _rewritten_plan(
    run: Run, shards: list[Shard], damage: UserError, supersede: bool, dry_run: bool
) -> plan.Plan | None:
    """The run's damaged plan, written anew where these shards are what it held; None with --supersede."""
    name = run.latest().plan
    if plan.name_of(shards) == name and not dry_run:
        warn.print(f"[yellow]{escape(str(damage))} It is written anew.[/]")
        return plan.Plan(run.plans, plan.write(run.plans, shards))
    if not supersede:
        what = "A dry run writes nothing." if dry_run else "These are other shards; --supersede goes on with them."
        raise UserError(f"launch: {damage} {what}")
    return None


def _known_missing(planned: plan.Plan | None, missing: list[Shard]) -> bool:
    """Whether an earlier launch has accepted that these shards do not exist."""
    accepted = _accepted_missing(planned) if planned else set()
    return all(s.id in accepted for s in missing)


def _accepted_missing(planned: plan.Plan) -> set[str]:
    """Ids of shards that were planned although they did not exist."""
    return {s.id for s in planned.shards() if s.etag == MissingShards.ETAG}


def _check_continuation(job: Job, planned: plan.Plan | None, supersede: bool, reopened: Collection[str]) -> None:
    """Raise UserError where an existing run directory cannot go on with this launch. Sets `job.previous`."""
    if not job.run.path.exists():
        return
    known = job.run.submissions()
    if not known:
        if any(job.run.path.iterdir()) and not job.run.is_run():  # ours without submissions: a launch died early
            raise UserError(f"launch: {job.run.path} exists and is not a run directory. Choose another `name=`.")
        return
    job.previous = known[-1]
    if planned:
        _check_input(job, planned, supersede, reopened)
    _check_identity(job, known[-1], supersede)


def _check_input(job: Job, planned: plan.Plan, supersede: bool, reopened: Collection[str]) -> None:
    """Raise UserError where the shards are not those of the run's plan. Sets `job.changed`."""
    dropped, changed = plan.changes(planned, job.shards)
    changed = [shard for shard in changed if shard not in reopened]
    arrived = _accepted_missing(planned) - {s.id for s in job.missing} - set(dropped) - set(reopened)
    job.changed = changed + sorted(arrived)
    total = len(planned)
    if len(dropped) == total:
        raise UserError(
            f"launch: {job.run.path} belongs to another plan ({total:,} shards, first {dropped[0]}; this one has "
            f"{len(job.shards):,}, first {job.shards[0].id}). Choose another `name=`, or say --append to do both."
        )
    if (dropped or changed) and not supersede:
        raise UserError(
            f"launch: the input of {job.run.path} changed: {len(dropped):,} shards are gone, {len(changed):,} have "
            f"another size (first: {(dropped + changed)[0]}). Choose another `name=`, or say --supersede to "
            "hpc.launch" + ("; --append keeps those that are not named." if dropped else ".")
        )


def _check_identity(job: Job, old: Submission, supersede: bool) -> None:
    if old.identity != job.identity and not supersede:
        done = sum(s.status == DONE for s in job.run.ledger(old.identity).survey().values())
        stale = f"{done:,} finished shards{' and its pilot' if pilot_launch.newest(job.run, old.identity) else ''}"
        what = what_changed(old, job.config) or "the model's files"
        raise UserError(
            f"launch: what makes the output changed ({what}; identity {old.identity} → {job.identity}): {stale} "
            "would be stale. Choose another `name=`, or say --supersede."
        )


def describe(job: Job, forecasts: list[str] | None = None) -> None:
    """The lines that a dry run and a launch both print; a dry run says its forecast, too."""
    known = [s.expected for s in job.shards if s.expected is not None]
    unknown = len(job.shards) - len(known)
    samples = f"{sum(known):,} samples expected" if known else "samples are counted on the way"
    if known and unknown:
        samples += f" in {len(known):,} of them"
    size = sum(s.bytes for s in job.shards)
    lines = [("plan", f"{len(job.shards):,} shards · {samples} · {file_size(size)}")]
    lines += pilot_launch.described(job.pilot, job.config, job.run, job.identity, len(job.shards))
    lines += job.operator.describe()
    cluster = job.config.run.cluster
    engines = cluster.workers_per_node
    several = cluster.gpus_per_engine > 1
    device = f"engines of {cluster.gpus_per_engine} GPUs" if several else f"{cluster.unit('engine')}s"
    home = -(-len(job.wanted) // job.slots)
    if cluster.kind == "slurm":
        limited = cluster.parallel and cluster.parallel < job.slots
        at_once = f", at most {cluster.parallel} at a time" if limited else ""
        fewer = f" (of {cluster.slots}: there is no work for more)" if job.slots < cluster.slots else ""
        shape = f"{job.slots} slots{fewer} × {engines} {device}{at_once}"
        lines.append(("array", f"{shape} · {cluster.time} each, requeued · home range ≈ {home:,}"))
    else:
        lines.append(("local", f"{job.slots} slots × {engines} {device} · home range ≈ {home:,} shards a slot"))
    lines += [("" if number else "forecast", text) for number, text in enumerate(forecasts or [])]
    if webhook.address():
        lines.append(("webhook", f"${events.VARIABLE} is told when the run is complete, paused or failed"))
    store = job.config.run.output
    root = f"{store.rstrip('/')}/{job.run.name}" if store else short(job.run.path)
    lines.append(("output", f"{root}/columns/{job.operator.column().name}/{job.identity}/"))
    for label, text in lines:
        say(label, text)
    if job.previous and job.previous.identity == job.identity:
        counts = Counter(s.status for s in job.run.ledger(job.identity).survey(job.run.generations.opened()).values())
        text = f"{counts[DONE]:,} of {len(job.shards):,} shards are done with this identity"
        if counts[FAILED]:
            text += f"; {counts[FAILED]:,} failed (rerun: python -m hpc.rerun {short(job.run.path)})"
        console.print(f"[bold]{'continues':<10}[/]{text}")
        if gone := lost.LostFiles(job.run, job.previous).all():
            for line in lost.message_and_command(gone, short(job.run.path)):
                warn.print(line, style="red", markup=False)


def dry_run(job: Job) -> int:
    """Print the plan, a forecast and the exact batch script; leave nothing behind."""
    describe(job, forecast.lines(job.config, job.identity, job.wanted, job.slots, job.rate))
    submission = Submission.placeholder(
        plan="", identity=job.identity, column=job.operator.column().name, code=snapshot.digest(),
        slots=job.slots, config=job.config.resolved, source=job.config.source,
    )  # fmt: skip
    console.print()
    if job.config.run.cluster.kind == "slurm":
        from hpc.slurm.submission import Launcher

        sys.stdout.write(Launcher(job.run, submission, job.config.run.cluster).script() + "\n")
    else:
        from hpc.map.local import command

        for slot in range(job.slots):
            sys.stdout.write(" ".join(command(job.run, submission, slot)) + "\n")
    return end_dry_run()


def record(job: Job) -> Submission:
    """Write the run directory: config, plan, code, and the intent to submit. Starts nothing."""
    run = job.run
    open_run(run, job.config, job.identity, job.previous)
    check_access(run.path)
    freeze(job.operator, run.frozen)
    submission = run.new_submission(
        plan=plan.write(run.plans, job.shards), identity=job.identity, column=job.operator.column().name,
        code=snapshot.take(run.code), slots=job.slots, config=job.config.resolved, source=job.config.source,
        append=job.append, overrides=job.config.overrides, by_rule=sorted(getattr(job.operator, "by_rule", ())),
        rate=forecast.rate_for_launch(job.config, job.identity, job.previous, job.rate),
        pilot=pilot_launch.write(run, job.pilot, job.shards) if job.pilot else "",
        compared="" if job.pilot else pilot_launch.compare(run, job.config, job.identity),
        webhook=bool(webhook.address()),
        **survey.of_launch(run, job.operator, job.shards, job.missing),
    )  # fmt: skip
    _record_inputs(job)
    return submission


def freeze(operator: Operator, folder: Path) -> None:
    """Write what the plan froze of the input, where the operator does such a thing."""
    if isinstance(operator, FreezesInput):
        operator.freeze(folder)


def submit(job: Job, *, start: bool = True, detach: bool = False) -> int:
    """Record the launch, then start the work: the intent is on disk before sbatch is called."""
    if start and job.config.run.cluster.kind == "slurm" and (_recover_lost_array(job) or _waits_already(job)):
        return Exit.COMPLETE
    submission = record(job)
    if not start:
        submission.state = "by hand"
        job.run.save(submission)
        console.print(f"\nrecorded, nothing was submitted. By hand, with Slurm or without:\n{_by_hand(job)}")
        return Exit.COMPLETE
    if job.config.run.cluster.kind == "slurm":
        return _submit_array(job, submission)
    from hpc.map import local

    if detach:
        console.print(f"\nstarted in the background · log: {short(local.detach(job.run, submission))}")
        console.print(f"watch: python -m hpc.status {short(job.run.path)} --watch")
        return Exit.COMPLETE
    code = local.supervise(job.run, submission)
    if code == Exit.COMPLETE:
        say_next(pilot_launch.next_steps if job.pilot else job.operator.next_steps, short(job.run.path))
    return code


def _by_hand(job: Job) -> str:
    run, cluster = short(job.run.path), job.config.run.cluster
    gpus = f" --gpus-per-node={cluster.gpus_per_node}" if cluster.gpus_per_node else ""
    sbatch = f"sbatch --array=0-{job.slots - 1}{gpus} sbatch/caption.sbatch {run}"
    return f"    {sbatch}\n    python -m hpc.worker {run} --slot 0"


def _record_inputs(job: Job) -> None:
    """Mark shards that do not exist as failed, and open a new generation of those whose input changed (--supersede)."""
    ledger = job.run.ledger(job.identity)
    states = ledger.survey(job.run.generations.opened()) if job.missing or job.changed else {}
    for shard in job.missing:
        state = states.get(shard.id, State())
        if not state.terminal:
            claim = Claim(shard, state.generation, state.epoch + 1)
            ledger.directory(shard.id).mkdir(parents=True, exist_ok=True)
            ledger.mark(claim, FAILED, {"reason": "input: missing", "detail": shard.uri, "epochs": []})
    if stale := {i: states[i].generation + 1 for i in job.changed if i in states}:
        job.run.generations.open(stale, "the input changed")


def _submit_array(job: Job, submission: Submission) -> int:
    from hpc.slurm.submission import Launcher

    cluster = job.config.run.cluster
    with orphan_events.sent_if_refused(job.run):
        code = submit_to_slurm(Launcher(job.run, submission, cluster), "{slots} slots")
    _submit_gate(job, submission)
    return code


def _submit_gate(job: Job, submission: Submission) -> None:
    """The gate behind an array, where the config wants one and it has none yet."""
    from hpc.slurm.jobs import GateLauncher

    cluster = job.config.run.cluster
    if not cluster.gate or submission.gate or submission.pilot:
        return
    array, allowed = submission.job_ids[0], job.config.run.map.allow_failed
    submission.gate = GateLauncher(job.run, submission, cluster, array, allowed).submit_script()
    job.run.save(submission)
    console.print(f"gate {submission.gate}: later jobs depend on it, cluster.dependency=afterok:{submission.gate}")


def _recover_lost_array(job: Job) -> bool:
    """Look for earlier submissions whose sbatch was not seen to answer. True if Slurm has one of them, and it does the
    work of this launch."""
    from hpc.slurm.queue import live_jobs

    found = False
    for submission in recover_lost_submissions(job.run):
        if _is_same_work(job, submission, plan.write(job.run.plans, job.shards)) and live_jobs(submission.job_ids):
            job_id = submission.job_ids[0]
            console.print(f"an earlier launch was submitted after all, as job {job_id}; nothing more was submitted")
            _submit_gate(job, submission)
            found = True
    return found


def _is_same_work(job: Job, other: Submission, shards: str) -> bool:
    """Whether another submission does the work of this launch. shards: the name of this launch's plan."""
    asked = (job.identity, shards, job.pilot.name if job.pilot else "")
    return (other.identity, other.plan, other.pilot) == asked


def _waits_already(job: Job) -> bool:
    """Whether slots that do the work of this launch wait in Slurm's queue: more of them would not start earlier."""
    from hpc.slurm.queue import pending

    shards = plan.write(job.run.plans, job.shards) if job.previous else ""
    same = [s for s in job.run.submissions() if _is_same_work(job, s, shards)]
    waiting = pending([i for s in same for i in s.job_ids])
    for job_id, (count, reason) in waiting.items():
        console.print(
            f"\njob {job_id} of this run waits to start, {count} slots ({reason}); nothing was submitted. To submit "
            f"it otherwise, cancel first: python -m hpc.cancel {short(job.run.path)}", markup=False
        )  # fmt: skip
    return bool(waiting)
