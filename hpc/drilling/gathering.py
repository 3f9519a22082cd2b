"""The lines that need several machines at the same time: how they see one another's files, and the start of jobs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from hpc.base import snapshot
from hpc.base.processes import die_with_parent
from hpc.drilling import jobs, witness
from hpc.drilling.file_system import Answer
from hpc.drilling.meeting import COME_S, Meeting, Report
from hpc.drilling.place import Place
from hpc.drilling.session import GONE, LATE_SHARE, Session, SlurmJob
from hpc.map.check import last_lines

LOCAL = ("link", "fsync", "rename")
TOGETHER = ("exclusion", "attributes")
_REPORT_S = 120.0  # to wait for the others' reports
_SHOWN_S = 20.0  # that a shared file system may take to show what a job that has ended wrote

SET = {
    "link": "`runs` on a POSIX file system that all nodes share (NFS, Lustre, GPFS, BeeGFS)",
    "fsync": "`runs` on another file system, or its mount options",
    "rename": "`runs` on a file system whose rename() is atomic for all its clients",
}


def in_processes(session: Session) -> None:
    """The meeting with processes of this machine in the place of nodes."""
    place = session.place
    witness.prepare(place)
    environment = {**os.environ, "TMPDIR": str(place.temporary)}
    others = []
    for number in range(session.nodes):
        words = ("--count", str(session.nodes), "--patience", f"{session.patience_s:g}", "--number", str(number))
        command = snapshot.command(place.run.code / session.code, "hpc.drilling.witness", str(place.path), *words)
        log = (place.run.logs / f"witness-{number}.log").open("wb")
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=die_with_parent
        )
        others.append(process)
    try:
        reports = _meet(session, lambda: all(process.poll() is not None for process in others))
    finally:
        for process in others:
            process.kill()
            process.wait()
    _judge(session, reports)
    if len(reports) <= session.nodes:
        last = " / ".join(last_lines(place.run.logs / "witness-0.log")[-3:])
        why = session.time_over or f"a process of this machine ended without a report: {last}"
        session.board.not_tried(TOGETHER, why, again=True)


def on_nodes(session: Session) -> None:
    """The meeting as a job with one task a node."""
    place, board = session.place, session.board
    witness.prepare(place)
    launcher = jobs.meeting(session)
    number = launcher.submit_script()
    job = SlurmJob(number, place.run.logs / launcher.log_pattern.replace("%j", number))
    if not session.wait(lambda: job.state() == GONE or _started(place)):
        board.not_tried(("start", "nodes", *TOGETHER), job.why_not(), again=True)
        return
    job.nodes()
    if not session.wait(lambda: _started(place), _SHOWN_S):
        to_set = "cluster.python, cluster.prelude, cluster.container; `runs` where all nodes see it"
        board.judge("start", f"job {number} wrote nothing that is seen here: {job.last_words()}", "", to_set)
        board.not_tried(("nodes", *TOGETHER), "no node came")
        return
    reports = _meet(session, lambda: job.state() == GONE)
    hosts = _started(place)
    board.judge("start", "", f"after {job.waited_s:.0f} s, on {', '.join(sorted(set(hosts.values())))}", "")
    _nodes(session, hosts, reports, job)
    _judge(session, reports)


def here(session: Session) -> dict[str, Answer]:
    """What the file system answers when this machine alone asks."""
    return witness.local(session.place.path / "local" / witness.HERE)


def _started(place: Place) -> dict[str, str]:
    """The host of each participant that has come, by its name."""
    folder = place.meeting
    found = {}
    for path in folder.glob("started-*.json"):
        if (host := _host_in(path)) is not None:
            found[path.stem.removeprefix("started-")] = host
    return found


def _host_in(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["host"])
    except (OSError, ValueError, KeyError):
        return None


def _meet(session: Session, over: Callable[[], object]) -> dict[str, Report]:
    """Take part in the meeting. Returns the reports, by participant, of all that have written one, ours included.

    Args:
        over: whether the others have ended.
    """
    place = session.place
    folder = place.meeting
    meeting = Meeting(folder, witness.HERE, witness.names(session.nodes), session.patience_s, lambda: session.over)
    meeting.report.local = here(session)
    meeting.attend()
    reports = {witness.HERE: meeting.report}

    def complete() -> bool:
        """Whether all reports are there. Only files that are listed are opened: clients of a shared file system may
        remember for long that a name did not exist when it was opened.
        """
        listed = set(os.listdir(folder))
        for name in witness.names(session.nodes):
            file = f"report-{name}.json"
            if name not in reports and file in listed and (report := Report.read(folder / file)):
                reports[name] = report
        return len(reports) > session.nodes

    session.wait(lambda: complete() or over(), session.patience_s + _REPORT_S)
    session.wait(complete, _SHOWN_S)
    return reports


def _nodes(session: Session, hosts: dict[str, str], reports: dict[str, Report], job: SlurmJob) -> None:
    board, wanted = session.board, session.nodes
    silent = sorted(set(witness.names(wanted)) - reports.keys())
    if silent:
        where = ", ".join(f"{hosts[name]}'s" for name in silent if name in hosts) or f"one of {job.nodes()}"
        to_set = "`runs` on a file system that this machine and all nodes mount at the same path"
        board.judge(
            "nodes", f"{len(silent)} of {wanted} reports are not seen here ({where}): {job.last_words()}", "", to_set
        )
    elif len(set(hosts.values())) < 2:
        why = f"{wanted} tasks ran on {', '.join(set(hosts.values()))} alone" if wanted > 1 else "one node took part"
        board.not_tried(["nodes"], f"{why}: --nodes 2, and cluster.slots=2 at least")
    else:
        board.judge("nodes", "", f"{', '.join(sorted(set(hosts.values())))} and {reports[witness.HERE].host}", "")


def judge_here(session: Session, answers: dict[str, Answer]) -> None:
    """The lines of LOCAL from this machine alone, where no node came."""
    for name, (problem, seen) in answers.items():
        session.board.judge(name, problem, f"{seen} (on this machine)", SET[name])


def _judge(session: Session, reports: dict[str, Report]) -> None:
    for name in LOCAL:
        problems = [(r.host, r.local[name][0]) for r in reports.values() if name in r.local and r.local[name][0]]
        if name == "rename" and not problems:
            problems = [(r.host, r.reading) for r in reports.values() if r.reading][:1]
        mine = reports[witness.HERE].local[name][1]
        places = f"; the same on {_hosts(reports.values())}" if len({r.host for r in reports.values()}) > 1 else ""
        session.board.judge(name, "; ".join(_by_host(problems)), f"{mine}{places}", SET[name])
    if len(reports) > 1:
        _exclusion(session, reports)
        _attributes(session, reports)


def _hosts(reports: Iterable[Report]) -> str:
    return ", ".join(sorted({report.host for report in reports if report.name != witness.HERE}))


def _by_host(problems: list[tuple[str, str]]) -> list[str]:
    """Each problem once, with the machines that have it."""
    hosts: dict[str, list[str]] = {}
    for host, problem in {host: problem for host, problem in reversed(problems)}.items():
        hosts.setdefault(problem, []).append(host)
    return [f"{problem} ({', '.join(where)})" for problem, where in hosts.items()]


def _exclusion(session: Session, reports: dict[str, Report]) -> None:
    board, folder = session.board, session.place.meeting / "race"
    if board.unfit("link"):
        board.not_tried(["exclusion"], "unfit: link")
        return
    if refused := [report.refused for report in reports.values() if report.refused]:
        board.not_tried(["exclusion"], f"no name could be made: {refused[0]}")
        return
    winners: dict[str, list[str]] = {}
    for report in reports.values():
        for name in report.wins:
            winners.setdefault(name, []).append(report.name)
    several = sum(len(won) > 1 for won in winners.values())
    other = sum(_text(folder / name) not in won for name, won in winners.items() if len(won) == 1)
    problems = [f"{several} of {len(winners)} names were won by several"] if several else []
    problems += [f"{other} hold another's content than their winner's"] if other else []
    won = " + ".join(str(len(report.wins)) for report in reports.values())
    board.judge("exclusion", "; ".join(problems), f"{len(winners)} names, won {won}", SET["link"])


def _attributes(session: Session, reports: dict[str, Report]) -> None:
    board, lease_s = session.board, session.config.map.lease_s
    allowed = lease_s / LATE_SHARE
    to_set = f"attribute caching of the mount (NFS: actimeo, lookupcache) under {allowed:.0f} s"
    unseen = [
        f"{report.host} does not see in {max(session.patience_s, COME_S):.0f} s that {', '.join(lost)} had come"
        for report in reports.values()
        if (lost := [name for name in report.absent if name in reports])
    ]
    late: dict[str, float] = {}
    for report in reports.values():
        unseen += [f"{what}: not in {session.patience_s:.0f} s" for what, s in report.late.items() if s is None]
        for what, seconds in report.late.items():
            late[what] = max(late.get(what, 0.0), seconds or 0.0)
    if unseen:
        board.judge("attributes", "; ".join(dict.fromkeys(unseen)), "", to_set)
        return
    if not late:
        board.not_tried(["attributes"], session.time_over or "nobody stayed to look", again=True)
        return
    what = max(late, key=lambda name: late[name])
    session.late_s = late[what]
    seen = f"at most {late[what]:.1f} s late ({what}); map.lease_s is {lease_s:g}"
    longer = f"{to_set}, or map.lease_s={2 * LATE_SHARE * late[what]:.0f}"
    board.judge("attributes", seen if late[what] > allowed else "", seen, longer)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
