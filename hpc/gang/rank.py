"""One rank of a gang job: what srun (or the local supervisor) starts, one task per GPU.

    python -m hpc.gang.rank RUN --submission UUID           be one rank; its number comes from Slurm, or RANK, ...
    python -m hpc.gang.rank RUN --submission UUID --begin   once, before the ranks of a life: may this life start?

Exit codes: 0 complete, 1 incomplete (cancelled, diverged, given up), 64 wrong usage, 70 crashed, 75 requeue me (all
ranks together, after a checkpoint). USR2 and TERM set a flag that the ranks agree on at a step boundary; a life that is
told to stop before its first step is done (it loads, it compiles) has nothing to save and ends within seconds. A rank
without a sign of life for `gang.hang_s` writes every thread's stack to a file on its node, then to the log, and ends
the job. (The file, $TMPDIR/<life>-r<rank>-*.stacks, stays: where the code that hangs holds Python's lock, nothing can
be written to the log.)
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base import heartbeat, shared_environment
from hpc.base.errors import FINAL, Exit, Parser, ShardError, UserError, fingerprint
from hpc.base.journal import Journal, read
from hpc.map import machine
from hpc.run.directory import Run, Submission

log = logging.getLogger("gang")

LIVES = 5  # in a row without progress, after which a gang is not requeued
_STACKS_S = 5.0  # between writing the stacks and ending, so that every rank's are in the log
_LEAVE_S = 5  # for which a rank that is told to stop before its first step is done may end by itself


class Rank:
    """This process's place in the gang (`hpc.trainer.Gang`): signals, heartbeat, watchdog."""

    def __init__(self, run: Run, submission: Submission, config: configs.Config) -> None:
        self.directory: Path = run.path
        self._run, self._config = run, config
        self.rank, self.world, self.local_rank = _rank_numbers(config.run.cluster)
        self.device = config.run.cluster.device or ("cuda" if config.run.cluster.gpus_per_node else "cpu")
        self.instance = newest_life(run, submission)[0]
        self._facts: dict[str, Any] = {"submission": submission.uuid, "slot": 0, "host": socket.gethostname()}
        self._facts |= {"instance": self.instance, "state": "starting", "ranks": self.world, "rows": 0}
        self._facts["log"] = machine.log_name()
        self._facts["life"] = int(self.instance.rsplit("-", 1)[1])
        self._first: int | None = None  # samples in the checkpoint from which this life began
        self._stop = 0  # the exit code with which to stop, once told
        self._begun = self._moving = False  # whether set-up is over, and whether the first step is, which compiles
        self._lock = threading.Lock()
        self._heartbeat = heartbeat.Heartbeat(run.slots, self.instance, 60.0)
        self._limit, self._alive = config.run.gang.setup_s, time.monotonic()  # seconds allowed since the last sign
        name = f"{self.instance}-r{self.rank}-"
        self._stacks = tempfile.NamedTemporaryFile("w", prefix=name, suffix=".stacks", delete=False)  # noqa: SIM115
        self._arm()
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    # --- what a trainer calls ---------------------------------------------------------------

    def stopping(self) -> int:
        return self._stop

    def beat(self, **facts: Any) -> None:
        self._alive = time.monotonic()
        if self._begun:
            self._moving, self._limit = True, self._config.run.gang.hang_s
        self._begun = self._begun or "step" in facts
        self._arm()
        if self.rank or not facts:
            return
        with self._lock:
            safe = facts.get("checkpoint", 0)
            self._first = safe if self._first is None else self._first
            self._facts.update(facts, state="running", rows=safe - self._first)
            self._heartbeat.advance(self._facts, force=safe != self._facts.get("told"))
            self._facts["told"] = safe

    def event(self, event: str, **facts: Any) -> None:
        journal = Journal(self._run.journals / f"{self.instance}-r{self.rank}.jsonl")
        journal.write(event, rank=self.rank, host=self._facts["host"], **facts)
        journal.close()

    def leave(self, code: int) -> None:
        """Record how this rank ended, and stop its watchdog."""
        self._alive = float("inf")
        faulthandler.cancel_dump_traceback_later()
        Path(self._stacks.name).unlink(missing_ok=True)
        if self.rank == 0 or code in FINAL[1:]:
            self.event("stop", code=code)
        if self.rank == 0:
            with self._lock:
                self._facts |= {"state": "exited", "code": code}
                self._heartbeat.advance(self._facts, force=True)

    # --- signals and watch ------------------------------------------------------------------

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = self._stop or Exit.REQUEUE

    def _watch(self) -> None:
        """In a thread, once a second: heartbeat, control files, time limit, watchdog."""
        end = float(os.environ.get("SLURM_JOB_END_TIME") or "inf") - self._config.run.cluster.signal_delay_s
        told, shown = 0, False
        while True:
            time.sleep(1.0)
            if self.rank == 0:
                self._control(end)
            told += self._stop != 0
            if told > _LEAVE_S and not self._moving:
                self.leave(self._stop)
                os._exit(self._stop)
            silent = time.monotonic() - self._alive - self._limit
            if silent > 1.0 and not shown:
                threading.Thread(target=self._show, name="stacks", daemon=True).start()
            shown = silent > 1.0
            if silent > _STACKS_S:
                os._exit(Exit.CRASHED)

    def _show(self) -> None:
        """Log the stacks. In a thread of its own, since the log may lie on the file system that hangs."""
        stacks = Path(self._stacks.name).read_text().rpartition("!\n")[2]  # the newest
        log.error("rank %d: no sign of life for %.0f s; its threads:\n%s", self.rank, self._limit, stacks)

    def _control(self, end: float) -> None:
        with self._lock:
            if self._facts["state"] != "exited":
                self._heartbeat.advance(self._facts)
        if any(self._run.control_text(name) is not None for name in ("cancelled", "pause")):
            self._stop = Exit.INCOMPLETE
        elif time.time() > end:
            self._stop = self._stop or Exit.REQUEUE

    def _arm(self) -> None:
        """(Re)start the timer of faulthandler, whose C thread writes the stacks even where the code that hangs holds
        Python's lock. It writes to a file of this rank: in the log, ranks would write into each other's lines.
        """
        faulthandler.dump_traceback_later(self._limit, exit=False, file=self._stacks)


def _rank_numbers(cluster: configs.ClusterConfig) -> tuple[int, int, int]:
    """(rank, number of ranks, rank on this node). Sets the variables that torch.distributed reads: RANK, WORLD_SIZE and
    LOCAL_RANK from Slurm's, and LOCAL_WORLD_SIZE.
    """
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if cluster.kind == "slurm":
        for name, source in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), names, strict=True):
            os.environ[name] = os.environ[source]
    here = cluster.workers_per_node if cluster.kind == "slurm" else os.environ["WORLD_SIZE"]
    os.environ["LOCAL_WORLD_SIZE"] = str(here)
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


def newest_life(run: Run, submission: Submission) -> tuple[str, int]:
    """(instance, life) of the newest life of a submission's gang; life -1 where there was none."""
    lives = [f for f in heartbeat.read_all(run.slots) if f.get("instance", "").startswith(f"{submission.uuid}-0000-")]
    newest = max(lives, key=lambda f: f["life"], default={})
    return newest.get("instance", f"{submission.uuid}-0000--1"), newest.get("life", -1)


def final_code(run: Run, instance: str) -> int | None:
    """The highest of the final exit codes that ranks of a life have recorded, None where none did. The code of srun
    does not tell: it may be another, and rank 0 may have been killed before it could record anything.
    """
    codes = []
    for path in run.journals.glob(f"{instance}-r*.jsonl"):
        codes += [e["code"] for e in read(path)[0] if e["event"] == "stop"][-1:]
    return max((code for code in codes if code in FINAL), default=None)


def start_life(run: Run, submission: Submission) -> int:
    """Register a new life; 0, or the final exit code with which not to start it."""
    last, life = newest_life(run, submission)
    code = final_code(run, last)
    if code is not None:
        log.error("the life before this one ended for good, with exit code %d: see the log above", code)
        return code
    prefix = f"{submission.uuid}-0000"
    lives = [heartbeat.read(run.slots, f"{prefix}-{n}") for n in range(life - LIVES + 1, life + 1)]
    if life + 1 >= LIVES and not any(facts.get("rows") for facts in lives):
        log.error("gave up: %d lives without a new checkpoint", LIVES)
        return Exit.INCOMPLETE
    facts = {"submission": submission.uuid, "host": socket.gethostname(), "state": "starting", "t": time.time()}
    facts["log"] = machine.log_name()
    instance, _ = heartbeat.register(run.slots, submission.uuid, 0, facts)
    log.info("gang %s begins on %s", instance, socket.gethostname())
    return Exit.COMPLETE


def work(run: Run, submission: Submission) -> int:
    """Be one rank; returns its exit code. Whatever ends it is recorded in the journal."""
    try:
        config = submission.checked()
    except UserError as error:  # such as a trainer that does not import on this node
        number = os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0"))
        journal = Journal(run.journals / f"{newest_life(run, submission)[0]}-r{number}.jsonl")
        journal.write("failed", reason=str(error)[:500], host=socket.gethostname())
        journal.write("stop", code=int(Exit.USAGE))
        journal.close()
        raise
    rank = Rank(run, submission, config)
    if rank.rank == 0 and (said := shared_environment.warning()):
        log.warning("%s", said)
    try:
        code = config.trainer().train(rank)
    except (UserError, ShardError) as error:
        log.error("%s", error)
        rank.event("failed", reason=str(error)[:500])
        # An input that cannot be read costs one life: a further one would meet it too, unless a store was away.
        code = Exit.CRASHED if isinstance(error, ShardError) and error.transient else Exit.USAGE
    except Exception as error:
        log.exception("rank %d crashed", rank.rank)
        rank.event("failed", reason=fingerprint(error), detail=str(error)[:500])
        code = Exit.CRASHED
    rank.leave(code)
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.gang.rank", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--submission", help="which launch to work for (default: the newest)")
    parser.add_argument("--begin", action="store_true", help="register a new life, or say why there is to be none")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0")) != "0":
        logging.getLogger().setLevel(logging.WARNING)
    try:
        run = Run(args.run)
        submission = run.submission(args.submission) if args.submission else run.latest()
        return start_life(run, submission) if args.begin else work(run, submission)
    except (UserError, FileNotFoundError) as error:
        logging.error("%s", error)
        return Exit.USAGE


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # the ranks leave together: none waits for another's threads
