"""Plan a job and submit it to Slurm, as one array of node slots (map) or one job of many ranks (gang), or run it here.

    python -m hpc.launch configs/caption/demo.yaml                         run the demo here
    python -m hpc.launch CONFIG cluster=slurm cluster.partition=gpu --dry-run    print the plan and the batch script
    python -m hpc.launch CONFIG cluster=slurm cluster.partition=gpu --check      try model and data in a job of one slot
    python -m hpc.launch configs/sft/demo.yaml                             train here (gang: the config names a trainer)
    python -m hpc.launch configs/pipeline/recap_demo.yaml                  a pipeline: the config has `stages:`
    python -m hpc.launch CONFIG captioner.model=/models/llava-llama-3-8b name=first-try

`key=value` changes the config (`data.0.path=/data` the first entry of a list), `--flags` are actions. Launching over a
run that exists continues it: finished shards are never redone. --check loads the model as a slot does, here or in a job
that it waits for, applies it to a few samples of the data, and shows what came of them, before anything is submitted:
python -m hpc.launch CONFIG --check

Exit codes: 0 submitted or complete, 1 incomplete (or: --check found that the work does not work), 2 some shards
failed or gave nothing, or no sample is ok, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from hpc import access, atomic, forecast, importable, lost, pipeline, plan, preflight, snapshot
from hpc import config as configs
from hpc.errors import Exit, Parser, Unanswered, UserError
from hpc.ledger import DONE, FAILED, Claim, State
from hpc.operator import MissingShards, Operator, Shard
from hpc.rundir import Run, Submission

if TYPE_CHECKING:
    from hpc.launcher import Launcher

console = Console(highlight=False, soft_wrap=True)
warn = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Job:
    """A checked launch, before anything is written."""

    config: configs.Config
    operator: Operator
    run: Run
    shards: list[Shard]
    identity: str
    previous: Submission | None = None
    limit: int | None = None  # shards that are to be done, where not all of the plan
    missing: list[Shard] = field(default_factory=list)  # of `shards`: those that do not exist, to be recorded as failed
    changed: list[str] = field(default_factory=list)  # ids whose input is another than in the run's plan
    append: bool = False  # the plan holds shards that this launch does not name

    @property
    def slots(self) -> int:
        """No more slots than there are shards for their engines."""
        cluster = self.config.run.cluster
        engines = cluster.gpus_per_node or cluster.engines_per_node
        return max(1, min(cluster.slots, -(-(self.limit or len(self.shards)) // engines)))


def prepare(
    config: configs.Config,
    *,
    supersede: bool = False,
    dry_run: bool = False,
    allow_missing: bool = False,
    append: bool = False,
    mended: Collection[str] = (),
) -> Job:
    """Check everything that can be checked without a cluster. Writes nothing; raises UserError.

    Shards in `mended` may have another size or etag than in the run's plan: they are done afresh anyway. With `append`,
    shards of the run's plan that this launch does not name stay in it.
    """
    config = settle(config, dry_run)
    operator = config.operator()
    preflight.check_waits(config, operator)
    run = Run(config.directory)
    missing: list[Shard] = []
    planned, hurt = _planned(run)
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
    if hurt:
        planned = _mended(run, shards, hurt, supersede and not append, dry_run)
    job = Job(config, operator, run, shards, configs.identity(config, operator), missing=missing, append=append)
    _check_continuation(job, planned, supersede, mended)
    return job


def _planned(run: Run) -> tuple[plan.Plan | None, plan.DamagedPlan | None]:
    """The plan of a run that exists; what is wrong with it."""
    known = run.submissions()
    if not known:
        return None, None
    try:
        found = plan.Plan(run.plans, known[-1].plan)
        found.table()  # every page, by its checksum
    except plan.DamagedPlan as error:
        return None, error
    return found, None


def _mended(run: Run, shards: list[Shard], hurt: UserError, supersede: bool, dry_run: bool) -> plan.Plan | None:
    """The run's damaged plan, written anew where these shards are what it held; None with --supersede."""
    name = run.latest().plan
    if plan.name_of(shards) == name and not dry_run:
        warn.print(f"[yellow]{escape(str(hurt))} It is written anew.[/]")
        return plan.Plan(run.plans, plan.write(run.plans, shards))
    if not supersede:
        what = "A dry run writes nothing." if dry_run else "These are other shards; --supersede goes on with them."
        raise UserError(f"launch: {hurt} {what}")
    return None


def settle(config: configs.Config, dry_run: bool) -> configs.Config:
    """The config for where it will really run. Raises UserError for a run directory that cannot be one."""
    if "://" in config.run.runs:
        raise UserError(
            f"config: `runs`: {config.run.runs!r} is an object store. Claims need a POSIX file system that all nodes "
            "share; inputs may be remote, the run directory may not."
        )
    check_access(config.directory, say=dry_run)
    check_importable(config)
    if config.run.cluster.kind == "slurm" and not shutil.which("sbatch"):
        warn.print(
            "[yellow]no Slurm here (sbatch is not on PATH): a launch runs on this machine instead, cluster=local[/]"
        )
        if not dry_run:
            return _on(config, {"kind": "local"})
    elif config.run.cluster.kind == "slurm":
        from hpc.launcher import max_array_size

        most = max_array_size()
        if most is not None and config.run.cluster.slots > most:
            wanted = config.run.cluster.slots
            warn.print(f"[yellow]{wanted:,} slots are more than this Slurm's MaxArraySize: {most:,} are used[/]")
            return _on(config, {**config.resolved["cluster"], "slots": most})
    return config


def check_importable(config: configs.Config) -> None:
    """Raise UserError for an operator or trainer that slots will not find; say so where a prelude may yet help."""
    if problem := importable.problem(config):
        if not config.run.cluster.prelude:
            raise UserError(problem)
        warn.print(f"[yellow]{escape(problem)} (unless cluster.prelude does so)[/]")


def _on(config: configs.Config, cluster: dict[str, object]) -> configs.Config:
    """The config on another cluster."""
    changed = configs.check({**config.resolved, "cluster": cluster}, config.source)
    return replace(changed, overrides=config.overrides)


def check_access(directory: Path, *, say: bool = True) -> None:
    """Refuse a place where a run could be replaced; say who else may write in it."""
    for warning in access.check(directory):
        if say:
            warn.print(f"[yellow]{escape(warning)} (docs/security.md)[/]")


def _known_missing(planned: plan.Plan | None, missing: list[Shard]) -> bool:
    """Whether an earlier launch has accepted that these shards do not exist."""
    accepted = _accepted_missing(planned) if planned else set()
    return all(s.id in accepted for s in missing)


def _accepted_missing(planned: plan.Plan) -> set[str]:
    """Ids of shards that were planned although they did not exist."""
    return {s.id for s in planned.shards() if s.etag == MissingShards.ETAG}


def _check_continuation(job: Job, planned: plan.Plan | None, supersede: bool, mended: Collection[str]) -> None:
    """What an existing run directory allows. Sets `job.previous`."""
    if not job.run.path.exists():
        return
    known = job.run.submissions()
    if not known:
        if any(job.run.path.iterdir()) and not job.run.is_run():  # ours without submissions: a launch died early
            raise UserError(f"launch: {job.run.path} exists and is not a run directory. Choose another `name=`.")
        return
    job.previous = known[-1]
    if planned:
        _check_input(job, planned, supersede, mended)
    _check_identity(job, known[-1], supersede)


def _check_input(job: Job, planned: plan.Plan, supersede: bool, mended: Collection[str]) -> None:
    """Whether the shards are those that the run has planned. Sets `job.changed`."""
    dropped, changed = plan.changes(planned, job.shards)
    changed = [shard for shard in changed if shard not in mended]
    arrived = _accepted_missing(planned) - {s.id for s in job.missing} - set(dropped) - set(mended)
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
            f"another size (first: {(dropped + changed)[0]}). Choose another `name=`, or say --supersede"
            + ("; --append keeps those that are not named." if dropped else ".")
        )


def _check_identity(job: Job, old: Submission, supersede: bool) -> None:
    if old.identity != job.identity and not supersede:
        done = sum(s.status == DONE for s in job.run.ledger(old.identity).survey().values())
        what = what_changed(old, job.config) or "the model's files"
        raise UserError(
            f"launch: what makes the output changed ({what}; identity {old.identity} → {job.identity}): {done:,} "
            "finished shards would be stale. Choose another `name=`, or say --supersede."
        )


def what_changed(old: Submission, config: configs.Config) -> str:
    """In what a config differs from that of an older submission: semantic keys, and what new versions of the work have
    changed. "" where it is neither."""
    before = old.checked()
    said = differences(old, config)
    try:
        work = before.trainer() if before.is_gang else before.operator()
        new = type(work).version
        known = next((v for v in range(new - 1, 0, -1) if configs.identity(before, work, v) == old.identity), new)
    except (UserError, OSError):  # what it was made with is gone
        known = new = 0
    if known != new:
        why = [text for version, text in sorted(getattr(type(work), "changes", {}).items()) if version > known]
        said.append(f"version {known} → {new}: {'; '.join(why) or 'the code'}")
    return ", ".join(said)


def differences(old: Submission, config: configs.Config) -> list[str]:
    """Semantic keys in which a config differs from that of an older submission."""

    def flat(tree: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}".strip(".")).items()}

    before = flat(old.checked().semantic())
    after = flat(config.semantic())
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


# --- what is said -----------------------------------------------------------------------------


def describe(job: Job, forecasts: list[str] | None = None) -> None:
    """The lines that a dry run and a launch both print; a dry run says its forecast, too."""
    known = [s.expected for s in job.shards if s.expected is not None]
    unknown = len(job.shards) - len(known)
    samples = f"{sum(known):,} samples expected" if known else "samples are counted on the way"
    if known and unknown:
        samples += f" in {len(known):,} of them"
    size = sum(s.bytes for s in job.shards)
    lines = [("plan", f"{len(job.shards):,} shards · {samples} · {_bytes(size)}")]
    lines += job.operator.describe()
    cluster = job.config.run.cluster
    engines = cluster.gpus_per_node or cluster.engines_per_node
    device = "GPUs" if cluster.gpus_per_node else "CPU engines"
    home = -(-len(job.shards) // job.slots)
    if cluster.kind == "slurm":
        limited = cluster.parallel and cluster.parallel < job.slots
        at_once = f", at most {cluster.parallel} at a time" if limited else ""
        shape = f"{job.slots} slots × {engines} {device}{at_once}"
        lines.append(("array", f"{shape} · {cluster.time} each, requeued · home range ≈ {home:,}"))
    else:
        lines.append(("local", f"{job.slots} slots × {engines} {device} · home range ≈ {home:,} shards a slot"))
    lines += [("" if number else "forecast", text) for number, text in enumerate(forecasts or [])]
    lines.append(("output", f"{short(job.run.path)}/columns/{job.operator.column().name}/{job.identity}/"))
    for label, text in lines:
        say(label, text)
    if job.previous and job.previous.identity == job.identity:
        counts = Counter(s.status for s in job.run.ledger(job.identity).survey(job.run.generations.opened()).values())
        text = f"{counts[DONE]:,} of {len(job.shards):,} shards are done with this identity"
        if counts[FAILED]:
            text += f"; {counts[FAILED]:,} failed (rerun: python -m hpc.rerun {short(job.run.path)})"
        console.print(f"[bold]{'continues':<10}[/]{text}")
        if gone := lost.LostFiles(job.run, job.previous).all():
            for line in lost.said(gone, short(job.run.path)):
                warn.print(line, style="red", markup=False)


def say(label: str, text: str) -> None:
    """One line of a plan. In a terminal it breaks between words: a number stays whole."""
    known = console.is_terminal or "COLUMNS" in os.environ
    width = max(console.width - 10, 20) if known else len(text) + 1
    parts = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, part in enumerate(parts):
        console.print(f"[bold]{'' if number else label:<10}[/]{escape(part)}")


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size:,.0f} B"
        size /= 1024
    raise AssertionError


def short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# --- submission -------------------------------------------------------------------------------


def dry_run(job: Job, rate: float | None = None) -> int:
    """Print the plan, a forecast and the exact batch script; leave nothing behind."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may close the pipe
    describe(job, forecast.lines(job.config, job.identity, job.shards, job.slots, rate))
    submission = Submission(
        "0" * 12, 0.0, plan="", identity=job.identity, column=job.operator.column().name, code=snapshot.digest(),
        slots=job.slots, config=job.config.resolved, source=job.config.source,
    )  # fmt: skip
    console.print()
    if job.config.run.cluster.kind == "slurm":
        from hpc.launcher import Launcher

        sys.stdout.write(Launcher(job.run, submission, job.config.run.cluster).script() + "\n")
    else:
        from hpc.local import command

        for slot in range(job.slots):
            sys.stdout.write(" ".join(command(job.run, submission, slot)) + "\n")
    console.print("\nnothing was submitted (--dry-run)")
    return Exit.COMPLETE


def record(job: Job) -> Submission:
    """Write the run directory: config, plan, code, and the intent to submit. Starts nothing."""
    run = job.run
    open_run(run, job.config, job.identity, job.previous)
    check_access(run.path)
    submission = run.new_submission(
        plan=plan.write(run.plans, job.shards),
        identity=job.identity,
        column=job.operator.column().name,
        code=snapshot.take(run.code),
        slots=job.slots,
        config=job.config.resolved,
        source=job.config.source,
        append=job.append,
        overrides=job.config.overrides,
        by_rule=sorted(getattr(job.operator, "by_rule", ())),
    )
    _record_inputs(job)
    return submission


def submit(job: Job, *, start: bool = True, detach: bool = False) -> int:
    """Record the launch, then start the work: the intent is on disk before sbatch is called."""
    if start and job.config.run.cluster.kind == "slurm" and (_adopt_unanswered(job) or _waits_already(job)):
        return Exit.COMPLETE
    submission = record(job)
    if not start:
        submission.state = "by hand"
        job.run.save(submission)
        console.print(f"\nrecorded, nothing was submitted. By hand, with Slurm or without:\n{_by_hand(job)}")
        return Exit.COMPLETE
    if job.config.run.cluster.kind == "slurm":
        return _submit_array(job, submission)
    from hpc import local

    if detach:
        console.print(f"\nstarted in the background · log: {short(local.detach(job.run, submission))}")
        console.print(f"watch: python -m hpc.status {short(job.run.path)} --watch")
        return Exit.COMPLETE
    code = local.supervise(job.run, submission)
    if code == Exit.COMPLETE:
        say_next(job.operator.next_steps, short(job.run.path))
    return code


def say_next(steps: Callable[[str], list[str]] | None, run: str) -> None:
    """Commands that show or use what a finished run has made, where its work knows some."""
    for number, step in enumerate(steps(run) if steps else []):
        console.print(f"{'next' if number == 0 else '':<9}{step}", markup=False)


def _by_hand(job: Job) -> str:
    run, cluster = short(job.run.path), job.config.run.cluster
    gpus = f" --gpus-per-node={cluster.gpus_per_node}" if cluster.gpus_per_node else ""
    sbatch = f"sbatch --array=0-{job.slots - 1}{gpus} sbatch/caption.sbatch {run}"
    return f"    {sbatch}\n    python -m hpc.worker {run} --slot 0"


def _record_inputs(job: Job) -> None:
    """Shards that do not exist are failed from the start; those whose input changed (--supersede) are done anew."""
    ledger = job.run.ledger(job.identity)
    survey = ledger.survey(job.run.generations.opened()) if job.missing or job.changed else {}
    for shard in job.missing:
        state = survey.get(shard.id, State())
        if not state.terminal:
            claim = Claim(shard, state.generation, state.epoch + 1)
            ledger.directory(shard.id).mkdir(parents=True, exist_ok=True)
            ledger.mark(claim, FAILED, {"reason": "input: missing", "detail": shard.uri, "epochs": []})
    if stale := {i: survey[i].generation + 1 for i in job.changed if i in survey}:
        job.run.generations.open(stale, "the input changed")


def open_run(run: Run, config: configs.Config, identity: str, previous: Submission | None) -> None:
    """Make the run directory, or open it again: its config.yaml, and no pause or cancellation."""
    config.apply_umask()
    run.make()
    _preflight(run)
    if run.config_file.exists() and previous and previous.identity != identity:
        run.config_file.rename(run.path / f"config.{previous.identity}.yaml")
    keep_config(run, config, identity)
    (run.control / "cancelled").unlink(missing_ok=True)
    (run.control / "pause").unlink(missing_ok=True)


def keep_config(run: Run, config: configs.Config, identity: str) -> None:
    """Write the run's config.yaml: every key, but where the run is, which is where the file lies."""
    other = "operator" if config.is_gang else "trainer"
    tree = {key: value for key, value in config.resolved.items() if key not in ("name", "runs", other)}
    head = f"# {f'identity {identity}; ' if identity else ''}python -m hpc.launch takes this file as it is\n"
    atomic.replace(run.config_file, (head + configs.dump(tree)).encode())


def _submit_array(job: Job, submission: Submission) -> int:
    from hpc.launcher import Launcher

    cluster = job.config.run.cluster
    code = submit_to_slurm(Launcher(job.run, submission, cluster), "{slots} slots")
    _submit_gate(job, submission)
    return code


def _submit_gate(job: Job, submission: Submission) -> None:
    """The gate behind an array, where the config wants one and it has none yet."""
    from hpc.gate_launcher import GateLauncher

    cluster = job.config.run.cluster
    if not cluster.gate or submission.gate:
        return
    array, allowed = submission.job_ids[0], job.config.run.map.allow_failed
    submission.gate = GateLauncher(job.run, submission, cluster, array, allowed).submit_script()
    job.run.save(submission)
    console.print(f"gate {submission.gate}: later jobs depend on it, cluster.dependency=afterok:{submission.gate}")


def _adopt_unanswered(job: Job) -> bool:
    """Look for earlier submissions whose sbatch got no answer, or was never seen to answer. True if one of them lives:
    then it does this launch's work."""
    from hpc.launcher import NoAnswer, find_job, live_jobs

    run, found = job.run, False
    for submission in run.submissions():
        if submission.state in ("intent", "unanswered") and submission.config["cluster"]["kind"] == "slurm":
            try:
                job_id = find_job(submission.uuid)
            except NoAnswer as error:
                raise Unanswered(str(error)) from error
            if (
                job_id is None
            ):  # never taken; or another launch is between its intent and its sbatch: not ours to change
                continue
            submission.state, submission.job_ids = "submitted", [job_id]
            run.save(submission)
            same = submission.identity == job.identity and submission.plan == plan.write(run.plans, job.shards)
            if same and live_jobs([job_id]):
                console.print(f"an earlier launch was submitted after all, as job {job_id}; nothing more was submitted")
                _submit_gate(job, submission)
                found = True
    return found


def _waits_already(job: Job) -> bool:
    """Whether slots that would do this launch's work wait in Slurm's queue: more of them would not start earlier."""
    from hpc.launcher import pending

    shards = plan.write(job.run.plans, job.shards) if job.previous else ""
    same = [s for s in job.run.submissions() if s.identity == job.identity and s.plan == shards]
    waiting = pending([i for s in same for i in s.job_ids])
    for job_id, (count, reason) in waiting.items():
        console.print(
            f"\njob {job_id} of this run waits to start, {count} slots ({reason}); nothing was submitted. To submit "
            f"it otherwise, cancel first: python -m hpc.cancel {short(job.run.path)}", markup=False
        )  # fmt: skip
    return bool(waiting)


def submit_to_slurm(launcher: Launcher, what: str) -> int:
    """sbatch, and its answer on disk; `what` is said of the job, e.g. "{slots} slots" (Slurm may allow fewer)."""
    run, submission = launcher.run, launcher.submission
    job_id = hand_over(launcher)
    log = launcher.log_pattern.replace("%A", job_id).replace("%j", job_id).replace("%a", "*")
    console.print(f"\nsubmitted {job_id} ({what.format(slots=submission.slots)}) · logs: {short(run.logs)}/{log}")
    console.print(f"watch: python -m hpc.status {short(run.path)} --watch")
    return Exit.COMPLETE


def hand_over(launcher: Launcher) -> str:
    """sbatch, and its answer on disk; the job's id. Raises Unanswered, or UserError where it is refused."""

    run, submission = launcher.run, launcher.submission
    try:
        job_id = launcher.submit_script()
    except Unanswered as error:
        submission.state, submission.error = "unanswered", str(error)
        run.save(submission)
        raise
    except UserError as error:
        submission.state, submission.error = "refused", str(error)
        run.save(submission)
        raise
    submission.state, submission.job_ids = "submitted", [job_id]
    run.save(submission)
    return job_id


def _preflight(run: Run) -> None:
    """Claims rest on link(2): it must work here, and refuse a name that exists."""
    probe = run.control / f"probe-{os.getpid()}"
    try:
        first, second = atomic.create(probe, b"1", durable=False), atomic.create(probe, b"2", durable=False)
    except OSError as error:
        raise UserError(
            f"launch: {run.path}: this file system cannot make hard links ({error}). "
            "Put `runs` on a POSIX file system that all nodes share."
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    if not first or second:
        raise UserError(f"launch: {run.path}: link() does not exclude here. Put `runs` on another file system.")


def _pipeline(args: argparse.Namespace) -> int:
    from hpc import pipeline_launch

    if args.detach or args.no_submit or args.allow_missing or args.rate or args.append or args.check:
        raise UserError(
            "launch: --detach, --no-submit, --allow-missing, --append, --rate and --check are for one job, not for a "
            "pipeline."
        )
    asked = pipeline_launch.Asked(args.supersede, args.only or "", args.begin or "")
    return pipeline_launch.launch(args.config, args.overrides, asked, dry_run=args.dry_run)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m hpc.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print plan and batch script, leave nothing behind")
    instead.add_argument(
        "--check", action="store_true", help="load the model, try it on a few samples of the data, submit nothing"
    )
    parser.add_argument(
        "--supersede", action="store_true", help="continue although the output's identity or input changed"
    )
    parser.add_argument("--rate", type=float, help="--dry-run: forecast with this rate, samples/s of one GPU or engine")
    parser.add_argument("--detach", action="store_true", help="cluster=local: go on in the background")
    parser.add_argument("--no-submit", action="store_true", help="write the run directory, start nothing")
    parser.add_argument("--allow-missing", action="store_true", help="plan shards that do not exist, as failed ones")
    parser.add_argument(
        "--append", action="store_true", help="keep shards of the run's plan that this launch does not name"
    )
    parser.add_argument(
        "--from", dest="begin", metavar="STAGE", help="pipelines: do this stage and all behind it again"
    )
    parser.add_argument("--only", metavar="STAGE", help="pipelines: do this stage again, and no other")
    args = parser.parse_intermixed_args(arguments)
    try:
        if pipeline.is_pipeline(args.config):
            return _pipeline(args)
        if args.begin or args.only:
            raise UserError(f"launch: --from and --only are for pipelines; {args.config} has no `stages:`.")
        config = configs.load(args.config, args.overrides)
        if config.is_gang:
            from hpc import gang_launch, sweep

            if args.no_submit or args.allow_missing or args.append or args.check:
                raise UserError(
                    "launch: --no-submit, --allow-missing, --append and --check are for map jobs, not for training; "
                    "what a training can know of its data and weights is said by --dry-run."
                )
            training = sweep if config.run.sweep else gang_launch
            return training.launch(config, supersede=args.supersede, dry_run=args.dry_run, detach=args.detach)
        job = prepare(
            config,
            supersede=args.supersede,
            dry_run=args.dry_run,
            allow_missing=args.allow_missing,
            append=args.append,
        )
        if args.dry_run:
            return dry_run(job, args.rate)
        describe(job)
        if args.check:
            from hpc import trial_launch

            return trial_launch.launch(job)
        return submit(job, start=not args.no_submit, detach=args.detach)
    except UserError as error:
        warn.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE


if __name__ == "__main__":
    sys.exit(main())
