"""A node's agent: claims shards, starts and watches one engine process per GPU, publishes what they finish.

Single-threaded and torch-free. Signals only set a flag: USR2 (Slurm's warning) and TERM make it drain; engines
ignore them.
"""

from __future__ import annotations

import logging
import selectors
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from hpc.base import heartbeat, object_store
from hpc.base.errors import Exit, ShardError, UserError, fingerprint, storage_full
from hpc.base.journal import Journal
from hpc.base.patience import patiently
from hpc.config.devices import devices
from hpc.map import breaker, machine, preflight, survey, suspects, verdict, webhook
from hpc.map.claiming import Candidates
from hpc.map.drain import Drain
from hpc.map.engine_process import EngineProcess
from hpc.map.engine_time import SlotTime
from hpc.map.in_flight import Held
from hpc.map.pilot_watch import PilotWatch
from hpc.map.publish import Publisher
from hpc.operator import OK, SKIPPED
from hpc.run import column as columns
from hpc.run import pilot
from hpc.run.directory import Run, Submission
from hpc.run.ledger import FAILED, Claim
from hpc.run.plan import Plan

log = logging.getLogger("agent")

DEATHS = 10  # of engines over one shard in one generation, after which it is marked failed


@dataclass
class ClaimedShard:
    """A shard that this slot has claimed and given to an engine. started: time.time() of that."""

    claim: Claim
    started: float


class Agent:
    """One life of one slot."""

    def __init__(self, run: Run, submission: Submission, slot: int) -> None:
        self.run, self.submission, self.slot = run, submission, slot
        self.config = submission.checked()
        self.config.apply_umask()
        self.settings = self.config.run.map
        self.facts = machine.describe() | {"submission": submission.uuid}
        self.instance, self.life = patiently(
            lambda: heartbeat.register(run.slots, submission.uuid, slot, self.facts), self.settings.lease_s
        )
        self.ledger = run.ledger(submission.identity)
        observer = heartbeat.Observer(run.slots, self.instance, self.settings.lease_s)
        self.pilot = pilot.read(run, submission.pilot) if submission.pilot else None
        which = self.pilot.plan if self.pilot else submission.plan
        self.plan = patiently(lambda: Plan(run.plans, which), self.settings.lease_s)
        # How often shared files that rarely change are looked at: hundreds of slots do so.
        look_s = min(10.0, max(0.2, self.settings.lease_s / 30))
        self.candidates = Candidates(
            run, self.plan, self.ledger, observer, self.instance, slot, submission.slots, look_s, submission.pilot
        )
        self.heartbeat = heartbeat.Heartbeat(run.slots, self.instance, self.settings.lease_s)
        self.watch = PilotWatch(run, submission, self.instance, self.heartbeat, observer, look_s)
        self.drain = Drain(run, self.instance, self.heartbeat, self.config.run, look_s)
        self.webhook = webhook.Webhook(run, self.instance, self.heartbeat, self.drain, self.settings)
        self.journal: Journal | None = None  # from `open_journal` on
        self.operator = survey.operator(run, submission, self.config)  # never set up here: engines do that
        schema = columns.schema(self.operator.column(), submission.identity)
        self.publisher = Publisher(
            run, self.ledger, submission.column, submission.identity, schema, self.settings.max_failed,
            self.config.run.output, {"instance": self.instance, "code": submission.code, **self.facts},
            self.operator.made_by(),
        )  # fmt: skip
        self.breaker = breaker.Breaker(self.settings.breaker)
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.engines: list[EngineProcess] = []
        self.time = SlotTime(machine.engines(cluster := self.config.run.cluster), machine.hour_weight(cluster))
        self.work: dict[tuple[int, str], ClaimedShard] = {}  # by (engine, shard id)
        self.rows = 0  # samples finished in this life
        self.good = 0  # of these, ok or skipped
        self.settled = 0  # shards done or failed in this life
        self.empty: set[tuple[str, int]] = set()  # (shard, generation) that were damaged, without a readable sample
        self.reruns = 0  # generation files that the last answer of `_finished` knew of
        self.idle_since = 0.0
        self.exclusive_shard: Claim | None = None  # while it runs or waits, no other shard is begun on this node
        self.exclusive_runs = False

    # --- life -------------------------------------------------------------------------------

    def main(self) -> Exit:
        if reason := breaker.reason_to_give_up(self.run, self.instance, self.life):
            return self._leave(Exit.INCOMPLETE, reason)
        try:
            self.open_journal()
        except UserError as error:
            return self._leave(Exit.USAGE, str(error))
        self.drain.listen()
        self._note("start", instance=self.instance, engines=self.config.run.cluster.devices_per_node, **self.facts)
        log.info("slot %d, life %d, instance %s on %s", self.slot, self.life, self.instance, self.facts["host"])
        if ended := self._finished():  # a slot that starts late need not load its model
            return self._leave(*ended)
        if unfit := preflight.unfit(self.run, self.submission, self.config, self.operator, self.facts["host"]):
            self.time.unfit()
            return self._leave(Exit.REQUEUE, unfit)
        try:
            for index, device in enumerate(devices(self.config.run.cluster)):
                self.engines.append(EngineProcess(index, device, self, self.time.engines[index]))
                self.engines[-1].start()
            code, why = self._loop()
        finally:
            for engine in self.engines:
                engine.kill()
        return self._leave(code, why)

    def _leave(self, code: Exit, why: str) -> Exit:
        log.info("leaving with exit code %d: %s", code, why)
        self._note("stop", code=int(code), reason=why, rows=self.rows, time=self.time.summed())
        self.webhook.leave(code, why, self.reruns, lambda: self.heartbeat.advance(self._status()))
        self.heartbeat.advance({**self._status(), "state": "exited", "code": int(code), "why": why}, force=True)
        if code in (Exit.COMPLETE, Exit.SOME_FAILED) and self.run.generations.count() != self.reruns:
            # A rerun writes its file, then reads heartbeats; we did it the other way round, so one sees the other.
            code, why = Exit.REQUEUE, "a rerun has just reopened shards"
            log.info("leaving with exit code %d: %s", code, why)
        if self.journal:
            self.journal.close()
        return code

    def open_journal(self) -> None:
        """UserError where it cannot be made, or other folders of the run are not there either."""
        self.journal = patiently(lambda: self.run.open_journal(self.instance), self.settings.lease_s)

    def _note(self, event: str, **facts: Any) -> None:
        if self.journal:
            self.journal.write(event, **facts)

    def _loop(self) -> tuple[Exit, str]:
        while True:
            self.heartbeat.advance(self._status())
            self.watch.look()
            for key, _ in self.selector.select(min(0.5, self.settings.lease_s / 10)):
                key.data.receive()
            for engine in self.engines:
                engine.watch()
            if self.drain.begins():
                for engine in self.engines:
                    engine.drain()
            if self.drain.reason:
                if not any(e.alive for e in self.engines) or time.monotonic() > self.drain.until:
                    return self._drained()
                continue
            if ended := self._feed():
                return ended

    def _feed(self) -> tuple[Exit, str] | None:
        """Give hungry engines a shard each. Returns how the job ended, when it did."""
        if all(e.given_up for e in self.engines):
            return Exit.REQUEUE, self._given_up()
        if self.heartbeat.fenced() or self._exclusive_shard_is_left():
            return None
        for engine in self.engines:
            while engine.hungry and not self.exclusive_shard:
                held = {shard for _, shard in self.work}
                try:
                    claim = self.candidates.acquire(min(30.0, self.settings.lease_s / 4), held)
                except OSError as error:
                    self.drain.fault = f"storage: {error}"
                    return None
                if claim is None:
                    return None if self.work else self._idle()
                self.idle_since = 0.0
                if self._begin(engine, claim):
                    engine.hungry = False
        return None

    def _given_up(self) -> str:
        """Why no engine is left. The node is blamed unless all that killed engines is shards that nobody could read."""
        reason = "every engine was given up: " + self.engines[0].last_words
        unread = [at for engine in self.engines for at in engine.unread]
        if unread and not any(self.ledger.read(shard, f"g{generation}.done") for shard, generation in unread):
            return reason
        return breaker.blame_node(self.run, self.submission.uuid, self.facts["host"], reason)

    def _exclusive_shard_is_left(self) -> bool:
        """Whether a shard that may kill the node runs, or waits until all engines have finished. Starts it then."""
        if self.exclusive_shard is None:
            return False
        ready = [engine for engine in self.engines if engine.hungry]
        if not self.work and self.exclusive_runs:
            self.exclusive_shard, self.exclusive_runs = None, False
        elif not self.work and ready:
            self.exclusive_runs = ready[0].hungry = True
            if self._begin(ready[0], self.exclusive_shard):
                ready[0].hungry = False
        return self.exclusive_shard is not None

    def _idle(self) -> tuple[Exit, str] | None:
        if self.candidates.complete() and (ended := self._finished()):
            return ended
        self.idle_since = self.idle_since or time.monotonic()
        if time.monotonic() - self.idle_since > self.settings.idle_exit_s:
            return Exit.INCOMPLETE, f"{self.candidates.busy} shards are left, all claimed by other slots"
        return None

    def _finished(self) -> tuple[Exit, str] | None:
        """How the job ended, if no shard of the plan is left."""
        self.reruns = self.run.generations.count()
        if self.pilot:
            return pilot.exit_of_pilot(self.run, self.ledger, self.plan, self.submission.pilot)
        return verdict.of_run(self.run, self.submission, self.ledger, self.plan, self.empty)

    # --- stopping ---------------------------------------------------------------------------

    def _drained(self) -> tuple[Exit, str]:
        for engine in self.engines:
            engine.kill()
            self.release(engine)
        if self.exclusive_shard and not self.exclusive_runs:
            self._end(self.exclusive_shard, "released", reason=self.drain.reason)
        return self.drain.code(), self.drain.reason

    def release(self, engine: EngineProcess) -> None:
        for work in self._held_by(engine):
            self._end(work.claim, "released", reason=self.drain.reason or self.drain.fault)
            del self.work[engine.index, work.claim.shard.id]

    # --- shards -----------------------------------------------------------------------------

    def _begin(self, engine: EngineProcess, claim: Claim) -> bool:
        """Look at how earlier epochs ended, then hand the shard to the engine.

        False if it was marked failed instead.
        """
        ends = self.ledger.ends(claim)
        care = suspects.judge(self.run, claim, ends)
        failures = [e for e in ends if e["how"] == "failed"]
        deaths = sum(e["how"] == "died" and suspects.only_this_shard(e) for e in ends)
        if len(failures) >= self.settings.attempts:
            self._mark_failed(claim, failures[-1]["reason"], failures[-1].get("detail", ""), ends)
            return False
        if care.unreadable or deaths > DEATHS:
            last: dict[str, Any] = next((e for e in reversed(ends) if e["how"] == "died"), {})
            detail = f"{deaths} engines died over it, the last: {last.get('reason', 'the whole agent')}"
            self._mark_failed(claim, care.unreadable or f"engine: died {deaths} times", detail, ends)
            self._trip(self.breaker.failure(claim.shard.id, care.unreadable or "engine: died"))
            return False
        if self.exclusive_shard is None and len(self.engines) > 1 and suspects.kills_nodes(ends):
            self.exclusive_shard = claim
            log.warning("%s: %d agents died over it: it gets the node", claim.shard.id, suspects.UNEXPLAINED)
            return False
        self.work[engine.index, claim.shard.id] = ClaimedShard(claim, time.time())
        at, reruns = (claim.shard.id, claim.generation), self.run.generations
        self._note("claim", shard=at[0], g=at[1], e=claim.epoch, engine=engine.index)
        engine.send(
            {
                "do": "shard", "shard": asdict(claim.shard), "generation": claim.generation, "epoch": claim.epoch,
                "suspects": care.suspects, "quarantine": care.quarantine, "apart": care.apart,
                "keep": reruns.keeps(*at), "manifests": reruns.manifests(*at, self.submission.reruns),
                "only": self.pilot.blocks[claim.shard.id] if self.pilot else None,
            }
        )  # fmt: skip
        return True

    def on_event(self, engine: EngineProcess, event: dict[str, Any]) -> None:
        """What an engine says of a shard, or of its storage."""
        if event["event"] == "storage":
            self.drain.fault = event["reason"]
            return
        work = self.work.get((engine.index, event["shard"]))
        if work is None or (work.claim.generation, work.claim.epoch) != (event["generation"], event["epoch"]):
            return
        if event["event"] == "segment":
            if not event["adopted"]:
                self.rows += event["rows"]
                engine.time.saved(event["rows"])
                self.good += event["counts"].get(OK, 0) + event["counts"].get(SKIPPED, 0)
            at = {"shard": event["shard"], "g": event["generation"], "e": event["epoch"]}
            self._note("segment", **at, engine=engine.index, **{k: event[k] for k in ("start", "counts", "adopted")})
        elif event["event"] == "measured":
            if self.submission.compared:
                self._note("measured", shard=event["shard"], like=event["like"])
        elif event["event"] == "finished":
            self._finish(engine, work, event)
        elif event["event"] == "piloted":
            self._end(work.claim, pilot.SAVED, pilot=self.submission.pilot)
            self._count_settled(engine, work.claim)
        elif event["event"] == "failed" and not self.drain.misses_folders():
            self._fail_attempt(engine, work, event["reason"], event["detail"])

    def _finish(self, engine: EngineProcess, work: ClaimedShard, event: dict[str, Any]) -> None:
        claim = work.claim
        if self.heartbeat.fenced():
            log.warning("%s: not published: this slot could not write its heartbeat", claim.shard.id)
            self._end(claim, "released", reason="slot: could not write its heartbeat")  # not the shard's fault
            del self.work[engine.index, claim.shard.id]
            return
        try:
            marker = self.publisher.publish(claim, event["rows"], event["damage"], work.started, event["noted"])
        except (OSError, ShardError, pa.ArrowException) as error:
            log.error("%s: not published: %s", claim.shard.id, error)
            if storage_full(error) or isinstance(error, object_store.Unavailable):
                self.drain.fault = f"storage: {error}"  # the slot's trouble, not the shard's: its claim is released
            elif not self.drain.misses_folders():
                self._fail_attempt(engine, work, fingerprint(error), str(error))
            return
        self._count_settled(engine, claim)
        if marker is None:
            log.warning("%s: epoch %d was superseded", claim.shard.id, claim.epoch)
            return
        facts = {k: marker[k] for k in ("counts", "reasons", "rows", "seconds", "tokens")}
        damage = marker["damage"] or {}
        if damage and not marker["rows"]:
            self.empty.add((claim.shard.id, claim.generation))
        facts |= {"damage": damage.get("reason"), "detail": damage.get("detail")}
        self._note("done", shard=claim.shard.id, g=claim.generation, **facts)

    def _count_settled(self, engine: EngineProcess, claim: Claim) -> None:
        del self.work[engine.index, claim.shard.id]
        self.breaker.success()
        self.settled += 1

    def _fail_attempt(self, engine: EngineProcess, work: ClaimedShard, reason: str, detail: str) -> None:
        """The work failed at this shard: the attempt counts, and after `map.attempts` of them the shard is failed."""
        claim = work.claim
        self._end(claim, "failed", reason=reason, detail=detail[:500], host=self.facts["host"], log=machine.log_name())
        self.work.pop((engine.index, claim.shard.id), None)
        ends = self.ledger.ends(Claim(claim.shard, claim.generation, claim.epoch + 1))
        if sum(e["how"] == "failed" for e in ends) >= self.settings.attempts:
            self._mark_failed(claim, reason, detail, ends)
        self._trip(self.breaker.failure(claim.shard.id, reason))

    def on_broken(self, reason: str, words: str) -> None:
        """An engine ended its own set-up with an error. A model that cannot load soon trips the breaker."""
        if not self.good:
            self._trip(self.breaker.death(reason, words))

    def _trip(self, stop: str) -> None:
        """Stop this slot for a reason of the breaker's, "" where it has none; see `breaker.stop`."""
        if stop:
            self.drain.fault = breaker.stop(self.run, self.submission.uuid, self.facts["host"], stop)

    def _mark_failed(self, claim: Claim, reason: str, detail: str, ends: list[dict[str, Any]]) -> None:
        where = {"host": self.facts["host"], "log": machine.log_name()}
        record = {"reason": reason, "detail": detail[:500], "epochs": ends, "by": self.publisher.owner, **where}
        self._end(claim, "failed", reason=reason, detail=detail[:500])
        if self.ledger.mark(claim, FAILED, record):
            self.settled += 1
            log.error("%s: failed for good: %s (%s)", claim.shard.id, reason, detail)
            self._note("failed", shard=claim.shard.id, g=claim.generation, reason=reason, detail=detail[:500], **where)

    def on_death(self, engine: EngineProcess, why: str, held: Held) -> bool:
        """An engine died: its shards are released, with what it held on record. This counts as no attempt.

        Returns:
            Whether it held no sample and was reading a shard whose reading has killed an engine before.
        """
        known = False
        for work in self._held_by(engine):
            claim = work.claim
            at = (claim.shard.id, claim.generation)
            mine = [i for (s, g, i) in held.samples if (s, g) == at]
            if at in held.reading:
                self.candidates.leave_to_others(claim.shard.id)
                known = not held.samples and any(e.get("reading") for e in self.ledger.ends(claim))
            facts = {"in_flight": mine, "together": len(held.samples), "reading": at in held.reading}
            self._end(claim, "died", reason=why, **facts, reads=len(held.reading), host=self.facts["host"])
            del self.work[engine.index, claim.shard.id]
        self.candidates.look_again()
        facts = {"in_flight": len(held.samples), "reading": [shard for shard, _ in held.reading]}
        self._note("engine", engine=engine.index, died=why, **facts, log=machine.log_name())
        return known

    def _end(self, claim: Claim, how: str, **facts: Any) -> None:
        try:
            if not self.ledger.end(claim, how, **facts):
                return  # it had ended already
        except OSError as error:  # without an end the epoch is unexplained: less is known, nothing is lost
            log.error("%s: cannot write the end of epoch %d: %s", claim.shard.id, claim.epoch, error)
        self._note("ended", shard=claim.shard.id, g=claim.generation, e=claim.epoch, how=how, **facts)

    def _held_by(self, engine: EngineProcess) -> list[ClaimedShard]:
        return [w for (index, _), w in self.work.items() if index == engine.index]

    def _status(self) -> dict[str, Any]:
        ready = any(e.ready for e in self.engines)
        state = "draining" if self.drain.reason else "starting" if not ready else "running" if self.work else "idle"
        return {
            **self.facts, "instance": self.instance, "slot": self.slot, "life": self.life, "state": state,
            "rows": self.rows, "good": self.good, "settled": self.settled, "shards": sorted(s for (_, s) in self.work),
            "engines": [e.describe() for e in self.engines], "cpus": machine.cpus(), "time": self.time.summed(),
        }  # fmt: skip
