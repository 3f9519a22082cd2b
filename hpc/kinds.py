"""The status and the progress of a job, whatever its kind (map, gang, sweep), from its run directory alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from hpc.base.errors import Exit
from hpc.map import verdict
from hpc.map.progress import first_names, unfinished_shards
from hpc.run.directory import Run


@dataclass(frozen=True)
class View:
    """How to read the facts of a run, and how to print them for people."""

    read: Callable[[], dict[str, Any]]
    render: Callable[[dict[str, Any]], Group]


def job_view(run: Run, by: str | None = None) -> View:
    """The view of a job. by: "node", "error" or "slot" for a table of these below the rest (map jobs)."""
    latest = run.latest().config
    if latest.get("sweep"):
        from hpc.gang import sweep_status

        return View(lambda: sweep_status.read_status(run), sweep_status.render)
    if latest.get("trainer"):
        from hpc.gang import status as gang_status

        return View(lambda: gang_status.read_status(run), gang_status.render)
    return _map_view(run, by)


def _map_view(run: Run, by: str | None) -> View:
    from hpc.map import breakdown
    from hpc.map import status as map_status

    tally = [map_status.current(run)]  # kept between looks, so that only what is new is read

    def read() -> dict[str, Any]:
        tally[0] = map_status.current(run, tally[0])
        return map_status.read_status(run, tally[0])

    if not by:
        return View(read, map_status.render)
    return View(read, lambda facts: Group(map_status.render(facts), Text(), breakdown.table(facts, by)))


@dataclass(frozen=True)
class StageProgress:
    """How far the job of a pipeline's stage is.

    done: shards that are done, or samples that a checkpoint holds; it only grows. left: what is missing, for people.
    hopeless: the job is not complete, and another launch would not change that.
    """

    complete: bool
    done: int
    left: str
    hopeless: bool = False


def progress(run: Run) -> StageProgress:
    """The progress of a job's newest launch."""
    submissions = run.submissions()
    if not submissions:
        return StageProgress(False, 0, "it was never launched")
    config = submissions[-1].config
    if config.get("sweep"):
        return _sweep(run)
    return _gang(run) if config.get("trainer") else _map(run, int(config["map"]["allow_failed"]))


def _map(run: Run, allowed: int) -> StageProgress:
    opened, failed, done = unfinished_shards(run)
    if opened:
        return StageProgress(False, done, f"{len(opened)} shards are left: {first_names(opened)}")
    if len(failed) > allowed:
        rerun = f"python -m hpc.rerun {run.path}"
        said = f"{len(failed)} shards failed, {allowed} may (map.allow_failed): {first_names(failed)}."
        said += f" When mended: {rerun}"
        return StageProgress(False, done, said, hopeless=True)
    if done and (why := verdict.of_newest(run)):
        return StageProgress(False, done, why, hopeless=True)
    return StageProgress(True, done, "")


def _gang(run: Run) -> StageProgress:
    from hpc.gang import status as gang_status

    return _training(gang_status.read_status(run), run)


def _training(facts: dict[str, Any], run: Run) -> StageProgress:
    done = int((facts["checkpoint"] or {}).get("samples", 0))
    if facts["exit"] == Exit.COMPLETE and (run.path / "exports" / "final").is_dir():
        return StageProgress(True, done, "")
    why = next(iter(facts["failures"]), "") or f"its ranks' own words: {run.logs}"
    final = facts["code"] in (Exit.INCOMPLETE, Exit.USAGE)
    return StageProgress(False, done, f"{done:,} samples are safe of {facts['total'] or '?'}; {why}", hopeless=final)


def _sweep(run: Run) -> StageProgress:
    from hpc.gang import sweep_status

    arms = {
        name: _training(sweep_status.arm(one), one) for name, one in sweep_status.runs(run).items() if one.submissions()
    }
    missing = [name for name in sweep_status.runs(run) if name not in arms or not arms[name].complete]
    done = sum(arm.done for arm in arms.values())
    if not missing:
        return StageProgress(True, done, "")
    hopeless = all(name in arms and arms[name].hopeless for name in missing)
    why = "; ".join(f"{name}: {arms[name].left}" for name in missing[:3] if name in arms)
    return StageProgress(False, done, f"arms {first_names(missing)} are left; {why}", hopeless)
