"""A node's agent: claims shards, starts and watches one engine process per GPU, publishes what they finish.

Single-threaded and torch-free. Signals only set a flag: USR2 (Slurm's warning) and TERM make it drain; engines ignore them.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from hpc import column as columns
from hpc import config as configs
from hpc import heartbeat
from hpc.candidates import Candidates
from hpc.engine import InFlight
from hpc.engine_process import EngineProcess
from hpc.errors import Exit, ShardError, fingerprint, storage_full
from hpc.journal import Journal
from hpc.ledger import FAILED, Claim
from hpc.plan import Plan
from hpc.publish import Publisher
from hpc.rundir import Run, Submission

log = logging.getLogger("agent")

DEATHS = 10  # of engines over one shard in one generation, after which it is marked failed
SUCCEEDED = "a later life of this slot has started"
TERM_S = 20.0  # to drain after SIGTERM: Slurm's KillWait is 30 s by default
LIVES = 5  # of a slot in a row without a finished sample, after which it is not requeued


@dataclass
class Work:
    """A claimed shard in an engine's hands."""

    claim: Claim
    started: float
    counts: Counter[str] = field(default_factory=Counter)


class Agent:
    """One life of one slot."""

    def __init__(self, run: Run, submission: Submission, slot: int) -> None:
        self.run, self.submission, self.slot = run, submission, slot
        self.config = configs.check(submission.config, submission.source)
        self.settings = self.config.run.map
        self.facts = _machine() | {"submission": submission.uuid}
        self.instance, self.life = heartbeat.register(run.slots, submission.uuid, slot, self.facts)
        self.ledger = run.ledger(submission.identity)
        observer = heartbeat.Observer(run.slots, self.instance, self.settings.lease_s)
        self.plan = Plan(run.plans, submission.plan)
        # How often shared files that rarely change are looked at: hundreds of slots do so.
        self.look_s = min(10.0, max(0.2, self.settings.lease_s / 30))
        self.next_look = 0.0
        self.candidates = Candidates(
            run, self.plan, self.ledger, observer, self.instance, slot, submission.slots, self.look_s
        )
        self.heartbeat = heartbeat.Heartbeat(run.slots, self.instance, self.settings.lease_s)
        self.journal = Journal(run.journals / f"{self.instance}.jsonl")
        schema = columns.schema(self.config.operator().column(), submission.identity)
        self.publisher = Publisher(
            run, self.ledger, submission.column, submission.identity, schema, self.settings.max_failed,
            {"instance": self.instance, "code": submission.code, **self.facts},
        )  # fmt: skip
        self.selector = selectors.DefaultSelector()
        self.engines: list[EngineProcess] = []
        self.work: dict[tuple[int, str], Work] = {}  # (engine, shard id)
        self.rows = 0  # samples finished in this life
        self.signal = 0  # the last that arrived; set by a handler, acted on by the loop
        self.storage = ""  # why the run directory cannot be written, if it cannot
        self.drain_reason = ""
        self.drain_until = 0.0
        self.terminated = False
        self.idle_since = 0.0

    # --- life -------------------------------------------------------------------------------

    def main(self) -> Exit:
        if self._hopeless():
            return self._leave(Exit.INCOMPLETE, "gave up: 5 lives without progress")
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.journal.write("start", instance=self.instance, **self.facts)
        log.info("slot %d, life %d, instance %s on %s", self.slot, self.life, self.instance, self.facts["host"])
        if ended := self._finished():  # a slot that starts late need not load its model
            return self._leave(*ended)
        try:
            for index, device in enumerate(_devices(self.config.run.cluster)):
                self.engines.append(EngineProcess(index, device, self))
                self.engines[-1].start()
            code, why = self._loop()
        finally:
            for engine in self.engines:
                engine.kill()
        return self._leave(code, why)

    def _hopeless(self) -> bool:
        """The last lives of this slot have all ended without a finished sample: requeuing does not help."""
        if self.life < LIVES:
            return False
        prefix = self.instance.rsplit("-", 1)[0]
        last = [heartbeat.read(self.run.slots, f"{prefix}-{i}") for i in range(self.life - LIVES, self.life)]
        return not any(facts.get("rows") for facts in last)

    def _leave(self, code: Exit, why: str) -> Exit:
        log.info("leaving with exit code %d: %s", code, why)
        self.journal.write("stop", code=int(code), reason=why, rows=self.rows)
        self.heartbeat.advance({**self._status(), "state": "exited", "code": int(code), "why": why}, force=True)
        self.journal.close()
        return code

    def _on_signal(self, number: int, frame: object) -> None:
        self.signal = number

    def _loop(self) -> tuple[Exit, str]:
        tick = min(0.5, self.settings.lease_s / 10)
        while True:
            self.heartbeat.advance(self._status())
            for key, _ in self.selector.select(tick):
                key.data.receive()
            for engine in self.engines:
                engine.watch()
            self._check_drain()
            if self.drain_reason:
                if not any(e.alive for e in self.engines) or time.monotonic() > self.drain_until:
                    return self._drained()
                continue
            if ended := self._feed():
                return ended

    def _feed(self) -> tuple[Exit, str] | None:
        """Give hungry engines a shard each. Returns how the job ended, when it did."""
        if all(e.given_up for e in self.engines):
            return Exit.REQUEUE, "every engine was given up: " + self.engines[0].last_words
        if self.heartbeat.fenced():
            return None
        for engine in self.engines:
            while engine.hungry:
                held = {shard for _, shard in self.work}
                claim = self.candidates.acquire(min(30.0, self.settings.lease_s / 4), held)
                if claim is None:
                    return None if self.work else self._idle()
                self.idle_since = 0.0
                if self._begin(engine, claim):
                    engine.hungry = False
        return None

    def _idle(self) -> tuple[Exit, str] | None:
        if self.candidates.complete() and (ended := self._finished()):
            return ended
        now = time.monotonic()
        self.idle_since = self.idle_since or now
        if now - self.idle_since > self.settings.idle_exit_s:
            return Exit.INCOMPLETE, f"{self.candidates.busy} shards are left, all claimed by other slots"
        return None

    def _finished(self) -> tuple[Exit, str] | None:
        """How the job ended, if no shard of the plan is left."""
        survey = self.ledger.survey(self.run.reopened())
        marks = [survey[i] for i in self.plan.ids() if i in survey]
        if len(marks) < len(self.plan) or not all(m.terminal for m in marks):
            return None
        failed = sum(m.status == FAILED for m in marks)
        if failed:
            return Exit.SOME_FAILED, f"nothing is left to do; {failed} shards failed"
        return Exit.COMPLETE, "every shard is done"

    # --- stopping ---------------------------------------------------------------------------

    def _check_drain(self) -> None:
        if self.drain_reason:
            if self.signal == signal.SIGTERM and not self.terminated:  # after USR2: now KILL is near
                self.terminated, self.drain_until = True, min(self.drain_until, time.monotonic() + TERM_S)
            return
        reason, limit = self.storage, self.settings.drain_s
        if self.signal == signal.SIGTERM:
            reason, limit = "SIGTERM", min(limit, TERM_S)
        elif self.signal:
            reason = signal.Signals(self.signal).name
        elif time.monotonic() > self.next_look:
            self.next_look = time.monotonic() + self.look_s
            reason = reason or self._told_to_stop()
        if reason:
            log.info("draining: %s", reason)
            self.drain_reason, self.drain_until = reason, time.monotonic() + limit
            for engine in self.engines:
                engine.drain()

    def _told_to_stop(self) -> str:
        if heartbeat.succeeded(self.run.slots, self.instance):
            return SUCCEEDED
        if (text := self.run.control_text("cancelled")) is not None:
            return f"cancelled {text}".strip()
        if (text := self.run.control_text("pause")) is not None:
            return f"paused: {text}"
        return "time limit" if time.time() > self._deadline() else ""

    def _deadline(self) -> float:
        """When to drain by our own clock, for sites whose Slurm sends no signal. Same machine's clock on both sides."""
        end = float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        return end - self.config.run.cluster.signal_delay_s

    def _drained(self) -> tuple[Exit, str]:
        for engine in self.engines:
            engine.kill()
            self.release(engine)
        if self.signal == signal.SIGTERM:
            return Exit.TERMINATED, self.drain_reason
        if self.drain_reason.startswith(("cancelled", "paused", "SIGINT", SUCCEEDED)):
            return Exit.INCOMPLETE, self.drain_reason
        return Exit.REQUEUE, self.drain_reason

    def release(self, engine: EngineProcess) -> None:
        for work in self._of(engine):
            self._end(work.claim, "released", reason=self.drain_reason)
            del self.work[engine.index, work.claim.shard.id]

    # --- shards -----------------------------------------------------------------------------

    def _begin(self, engine: EngineProcess, claim: Claim) -> bool:
        """Look at how earlier epochs ended, then hand the shard to the engine. False if it was marked failed instead."""
        ends = self.ledger.ends(claim)
        suspects, quarantine = self._suspects(claim, ends)
        failures = [e for e in ends if e["how"] == "failed"]
        deaths = sum(e["how"] == "died" and _alone(e) for e in ends)
        if len(failures) >= self.settings.attempts:
            self._fail(claim, failures[-1]["reason"], failures[-1].get("detail", ""), ends)
            return False
        if deaths > DEATHS:
            self._fail(claim, f"engine: died {deaths} times", ends[-1].get("detail", ""), ends)
            return False
        self.work[engine.index, claim.shard.id] = Work(claim, time.time())
        self.journal.write("claim", shard=claim.shard.id, g=claim.generation, e=claim.epoch, engine=engine.index)
        engine.send(
            {
                "do": "shard", "shard": asdict(claim.shard), "generation": claim.generation,
                "epoch": claim.epoch, "suspects": suspects, "quarantine": quarantine,
            }
        )  # fmt: skip
        return True

    def _suspects(self, claim: Claim, ends: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        """(samples to apply alone, samples not to apply at all), from how earlier epochs ended.

        A sample that was alone in flight at two deaths is the cause: it is quarantined. Epochs without an end count once there
        are two of them: a lost node explains one, and what was in flight is on disk.
        """
        alone: Counter[int] = Counter()
        suspects: set[int] = set()
        unexplained = [e for e in ends if e["how"] == "unexplained"]
        for end in ends:
            if end["how"] == "unexplained" and len(unexplained) >= 2:
                held, whole = self._left_in_flight(end.get("owner", ""), claim)
            elif end["how"] == "died":
                held, whole = end["in_flight"], end["together"]
            else:
                continue
            suspects.update(held)
            if len(held) == 1 and whole == 1:
                alone[held[0]] += 1
        quarantine = {index for index, deaths in alone.items() if deaths >= 2}
        return sorted(suspects - quarantine), sorted(quarantine)

    def _left_in_flight(self, owner: str, claim: Claim) -> tuple[list[int], int]:
        """(this shard's samples, all samples) in flight in the engine of a dead agent that worked on this shard."""
        for path in sorted(self.run.inflight.glob(f"{owner}.*")) if owner else []:
            held, _ = InFlight.read(path)
            mine = [i for (s, g, i) in held if (s, g) == (claim.shard.id, claim.generation)]
            if mine:
                return mine, len(held)
        return [], 0

    def on_event(self, engine: EngineProcess, event: dict[str, Any]) -> None:
        """segment, finished and failed events of an engine."""
        if event["event"] == "storage":
            self.storage = event["reason"]
            return
        work = self.work.get((engine.index, event["shard"]))
        if work is None or (work.claim.generation, work.claim.epoch) != (event["generation"], event["epoch"]):
            return
        if event["event"] == "segment":
            work.counts.update(event["counts"])
            if not event["adopted"]:
                self.rows += event["rows"]
            facts = {k: event[k] for k in ("start", "counts", "adopted")}
            self.journal.write("segment", shard=event["shard"], g=event["generation"], **facts)
        elif event["event"] == "finished":
            self._finish(engine, work, event)
        elif event["event"] == "failed":
            self._give_back(engine, work, event["reason"], event["detail"])

    def _finish(self, engine: EngineProcess, work: Work, event: dict[str, Any]) -> None:
        claim = work.claim
        if self.heartbeat.fenced():
            log.warning("%s: not published: this slot could not write its heartbeat", claim.shard.id)
            self._end(claim, "released", reason="slot: could not write its heartbeat")  # not the shard's fault
            del self.work[engine.index, claim.shard.id]
            return
        try:
            marker = self.publisher.publish(claim, event["rows"], event["damage"], work.started)
        except (OSError, ShardError, pa.ArrowException) as error:
            log.error("%s: not published: %s", claim.shard.id, error)
            if storage_full(error):
                self.storage = f"storage: {error}"  # the slot's trouble, not the shard's: its claim is released
                return
            self._give_back(engine, work, fingerprint(error), str(error))
            return
        del self.work[engine.index, claim.shard.id]
        if marker is None:
            log.warning("%s: epoch %d was superseded", claim.shard.id, claim.epoch)
            return
        facts = {k: marker[k] for k in ("counts", "reasons", "rows", "seconds")}
        damage = (marker["damage"] or {}).get("reason")
        detail = (marker["damage"] or {}).get("detail")
        self.journal.write(
            "done", shard=claim.shard.id, g=claim.generation, **facts, damage=damage, detail=detail
        )

    def _give_back(self, engine: EngineProcess, work: Work, reason: str, detail: str) -> None:
        """An application failure: charged to the shard; the last one allowed marks it failed."""
        claim = work.claim
        self._end(claim, "failed", reason=reason, detail=detail[:500], host=self.facts["host"], log=_log_name())
        self.work.pop((engine.index, claim.shard.id), None)
        ends = self.ledger.ends(Claim(claim.shard, claim.generation, claim.epoch + 1))
        if sum(e["how"] == "failed" for e in ends) >= self.settings.attempts:
            self._fail(claim, reason, detail, ends)

    def _fail(self, claim: Claim, reason: str, detail: str, ends: list[dict[str, Any]]) -> None:
        where = {"host": self.facts["host"], "log": _log_name()}
        record = {"reason": reason, "detail": detail[:500], "epochs": ends, "by": self.publisher.owner, **where}
        self._end(claim, "failed", reason=reason, detail=detail[:500])
        if self.ledger.mark(claim, FAILED, record):
            log.error("%s: failed for good: %s (%s)", claim.shard.id, reason, detail)
            self.journal.write(
                "failed", shard=claim.shard.id, g=claim.generation, reason=reason, detail=detail[:500], **where
            )

    def on_death(self, engine: EngineProcess, why: str, held: list[tuple[str, int, int]]) -> None:
        """An engine died: its shards go back with what was in flight, and are not charged."""
        for work in self._of(engine):
            claim = work.claim
            mine = [i for (s, g, i) in held if (s, g) == (claim.shard.id, claim.generation)]
            self._end(claim, "died", reason=why, in_flight=mine, together=len(held), host=self.facts["host"])
            del self.work[engine.index, claim.shard.id]
        self.candidates.look_again()
        self.journal.write("engine", engine=engine.index, died=why, in_flight=len(held), log=_log_name())

    def _end(self, claim: Claim, how: str, **facts: Any) -> None:
        try:
            self.ledger.end(claim, how, **facts)
        except OSError as error:  # without an end the epoch is unexplained: less is known, nothing is lost
            log.error("%s: cannot write the end of epoch %d: %s", claim.shard.id, claim.epoch, error)
        self.journal.write("ended", shard=claim.shard.id, g=claim.generation, e=claim.epoch, how=how, **facts)

    def _of(self, engine: EngineProcess) -> list[Work]:
        return [w for (index, _), w in self.work.items() if index == engine.index]

    def _status(self) -> dict[str, Any]:
        state = "draining" if self.drain_reason else "running" if self.work else "idle"
        if not any(e.ready for e in self.engines) and not self.drain_reason:
            state = "starting"
        return {
            **self.facts, "instance": self.instance, "slot": self.slot, "life": self.life, "state": state,
            "rows": self.rows, "shards": sorted(s for (_, s) in self.work),
            "engines": [e.describe() for e in self.engines],
        }  # fmt: skip


def _alone(death: dict[str, Any]) -> bool:
    """Whether only this shard can be to blame for an engine's death: no other shard's samples were in flight."""
    return len(death["in_flight"]) == death["together"]


def _machine() -> dict[str, Any]:
    """Who we are, for people: host, process, and the job as Slurm names it."""
    env = os.environ
    job = env.get("SLURM_JOB_ID", "")
    if env.get("SLURM_ARRAY_JOB_ID"):
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    return {
        "host": env.get("SLURMD_NODENAME") or socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "log": _log_name(),
    }


def _log_name() -> str:
    return os.environ.get("HPC_LOG", "")


def _devices(cluster: configs.ClusterConfig) -> Iterable[dict[str, str]]:
    """One environment per engine: its own GPU, or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [d for d in visible.split(",") if d] or [str(i) for i in range(cluster.gpus_per_node)]
    if not cluster.gpus_per_node:
        return [{"device": "cpu", "CUDA_VISIBLE_DEVICES": ""} for _ in range(cluster.engines_per_node)]
    device = cluster.device or "cuda"
    return [{"device": device, "CUDA_VISIBLE_DEVICES": d} for d in ids[: cluster.gpus_per_node]]
