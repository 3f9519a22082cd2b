"""The faults of tests/support/chaos.py: each is done to a run, and tells afterwards whether its effect was seen.

A fault returns None where there was nothing to hit, else a question that is asked again until it says yes: a kill that
met a process on its way out, or a job that Slurm never started, has no effect and does not count.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hpc.base import heartbeat, journal
from hpc.base.errors import Exit
from hpc.run.directory import Run
from hpc.run.ledger import DONE
from tests.support.slurm_cluster import NODES, ROOT, Cluster, alive, wait
from tests.support.slurm_job import EchoJob

LEASE_S = 2.0
Effect = Callable[[], bool]


class Faults:
    """What can be done to one run. `environment` is what its commands, and so all of its processes, inherit."""

    def __init__(self, slurm: Cluster, job: EchoJob, seed: int, environment: dict[str, str]) -> None:
        self.slurm, self.job, self.run = slurm, job, Run(job.run.path)
        self.random = random.Random(seed)
        self.environment = environment
        self.kinds: dict[str, Callable[[], Effect | None]] = {
            "engine killed": self._kill_engine,
            "agent killed": self._kill_agent,
            "agent stalled longer than its lease": self._stall,
            "slurmd killed": self._slurmd,
            "node lost": self._node,
            "controller killed": self._controller,
            "slot requeued": self._requeue,
            "slot preempted": self._preempt,
            "slot cancelled": self._cancel_slot,
            "run cancelled and launched again": self.relaunch,
            "second launch beside the first": self._second_launch,
            "finished shard reopened": self.reopen,
            "status asked": self._status,
        }

    # --- commands ---------------------------------------------------------------------------

    def launch(self) -> str:
        """What the launch said. Tried until the controller has taken it: after a kill -9 it may be away for seconds."""
        words = ["time='1'", "signal_delay_s=10", f"slots={NODES}", "gpus_per_node=2", "device=cpu"]
        command = self.job.command(*(f"cluster.{word}" for word in words))
        said: list[str] = []

        def taken() -> bool:
            done = self.command(*command)
            said.append(done.stdout)
            return done.returncode == Exit.COMPLETE

        wait(taken, "a launch is taken")
        return said[-1]

    def ask(self, *command: str) -> str:
        """A command that may fail (the controller may be down); what it printed, "" then."""
        done = self.command(*command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def command(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    def live(self) -> str:
        """The run's jobs that Slurm still has."""
        return self.ask("squeue", "-h", "-n", self.run.name)

    # --- what is known of slots -------------------------------------------------------------

    def _running(self) -> dict[str, str]:
        """Instance by array element (job_slot), of the lives that run now."""
        elements = self.ask("squeue", "-h", "-r", "-t", "R", "-n", self.run.name, "-o", "%F_%K").split()
        lives = [f for f in heartbeat.read_all(self.run.slots) if f.get("state") != "exited"]
        newest = {f["job"]: f["instance"] for f in sorted(lives, key=lambda f: f["life"]) if f.get("job")}
        return {element: newest[element] for element in elements if element in newest}

    def _agents(self) -> dict[str, psutil.Process]:
        """The agents that live, by instance; one that has not registered yet is left out."""
        lives = {(f["submission"], f["slot"], f["pid"]): f["instance"] for f in heartbeat.read_all(self.run.slots)}
        found = {}
        for process in self.job.processes("hpc.worker"):
            try:
                words, number = process.cmdline(), _number_inside(process)
            except (psutil.NoSuchProcess, OSError):
                continue
            slot = (words[words.index("--submission") + 1], int(words[words.index("--slot") + 1]), number)
            if slot in lives:
                found[lives[slot]] = process
        return found

    def _facts(self, instance: str) -> dict[str, Any]:
        return heartbeat.read(self.run.slots, instance)

    def _died(self, instance: str) -> Effect:
        """Whether a life ended without a word, and others noticed: its slot has a next life, or its shards an owner."""
        held = {shard: (s.generation, s.epoch) for shard, s in self.job.states().items()}
        mine = {shard: held[shard] for shard in self.job.claims(instance)}

        def noticed() -> bool:
            if self._facts(instance).get("state") == "exited":
                return False
            states = self.job.states()
            taken = any((states[shard].generation, states[shard].epoch) > at for shard, at in mine.items())
            return taken or heartbeat.has_successor(self.run.slots, instance)

        return noticed

    def _element(self, element: str, key: str) -> str:
        """One fact of `scontrol show job` about an array element or a job, "" where Slurm does not say."""
        match = re.search(rf"\b{key}=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", element))
        return match[1] if match else ""

    # --- processes --------------------------------------------------------------------------

    def _kill_engine(self) -> Effect | None:
        engines = self.job.processes("hpc.map.engine")
        if not engines:
            return None
        victim = self.random.choice(engines)
        try:
            instance, _, number = Path(victim.cmdline()[-1]).name.rpartition(".")
            told = self.run.journals / f"{instance}.jsonl"
            before = _deaths(told, int(number))
            victim.kill()
        except (psutil.NoSuchProcess, IndexError, ValueError):
            return None
        return lambda: _deaths(told, int(number)) > before

    def _kill_agent(self) -> Effect | None:
        agents = self._agents()
        if not agents:
            return None
        instance = self.random.choice(sorted(agents))
        noticed = self._died(instance)
        try:
            agents[instance].kill()
        except psutil.NoSuchProcess:
            return None
        return noticed

    def _stall(self) -> Effect | None:
        """Its heartbeat must have stood still for the whole lease: others may take its shards meanwhile."""
        agents = self._agents()
        if not agents:
            return None
        instance = self.random.choice(sorted(agents))
        try:
            agents[instance].suspend()
            wait(lambda: agents[instance].status() == psutil.STATUS_STOPPED, "the agent stands still", 10)
            before = self._facts(instance).get("beat")
            time.sleep(LEASE_S + 1.0)
            stalled = agents[instance].status() == psutil.STATUS_STOPPED
            stalled &= self._facts(instance).get("beat") == before
            agents[instance].resume()
        except psutil.NoSuchProcess:
            return None
        return lambda: stalled

    # --- nodes and the controller -----------------------------------------------------------

    def _slurmd(self) -> Effect:
        node = f"n{self.random.randint(1, NODES)}"
        before = self.slurm.daemons("slurmd", "-N", node)
        self.slurm.mini_slurm("slurmd-kill", node)
        killed = bool(before) and not any(map(alive, before))
        time.sleep(self.random.uniform(0.5, 3.0))
        self.slurm.mini_slurm("node-start", node)
        return lambda: killed and any(map(alive, self.slurm.daemons("slurmd", "-N", node)))

    def _node(self) -> Effect | None:
        """A node on which a slot works."""
        hosts = {self._facts(instance)["host"]: instance for instance in self._agents()}
        if not hosts:
            return None
        node = self.random.choice(sorted(hosts))
        noticed = self._died(hosts[node])
        self.slurm.mini_slurm("node-kill", node)
        time.sleep(self.random.uniform(1.0, 3.0))
        self.slurm.mini_slurm("node-start", node)
        return noticed

    def _controller(self) -> Effect:
        before = self.slurm.daemons("slurmctld")
        self.slurm.kill_controller()
        wait(lambda: not any(map(alive, before)), "the controller is dead", 10)
        time.sleep(self.random.uniform(0.5, 2.0))
        self.slurm.start()
        return lambda: bool(before) and any(map(alive, self.slurm.daemons("slurmctld")))

    # --- what Slurm and its users do --------------------------------------------------------

    def _requeue(self) -> Effect | None:
        running = self._running()
        if not running:
            return None
        element = self.random.choice(sorted(running))
        if self.command("scontrol", "requeue", element).returncode:
            return None
        return lambda: heartbeat.has_successor(self.run.slots, running[element])

    def _preempt(self) -> Effect | None:
        """A short job of higher priority takes a whole node, where a slot worked."""
        hosts = {self._facts(instance)["host"]: instance for instance in self._running().values()}
        options = ("-p", "high", "--exclusive", "-n1", "-t1", "-o", "/dev/null", "--wrap", "sleep 2")
        job = hosts and self.ask("sbatch", "--parsable", *options)
        if not job:
            return None

        def took() -> bool:
            instance = hosts.get(self._element(job, "NodeList"))
            return instance is not None and (
                self._facts(instance).get("state") == "exited" or heartbeat.has_successor(self.run.slots, instance)
            )

        return took

    def _cancel_slot(self) -> Effect | None:
        running = self._running()
        if not running:
            return None
        element = self.random.choice(sorted(running))
        self.ask("scancel", element)
        if not self.live():
            self.launch()
        return lambda: self._element(element, "JobState") == "CANCELLED"

    def relaunch(self) -> Effect | None:
        """What was there is cancelled, and a later submission works."""
        old = set(self._running())
        if not self.live():
            self.launch()
            return None
        before = {s.uuid for s in self.run.submissions()}
        self.ask("scancel", "-n", self.run.name)
        self.launch()

        def replaced() -> bool:
            new = {f["submission"] for f in heartbeat.read_all(self.run.slots)} - before
            return bool(new) and all(self._element(element, "JobState") == "CANCELLED" for element in old)

        return replaced

    def _second_launch(self) -> Effect | None:
        """Another array works beside the first; or the first waits in the queue, and the launch submits nothing."""
        first, before = set(self._running().values()), {s.uuid for s in self.run.submissions()}
        said = self.launch()
        new = {s.uuid for s in self.run.submissions()} - before
        if not new:
            refused = "nothing was submitted" in said or "nothing more was submitted" in said
            return lambda: refused

        def both() -> bool:
            uuids = {instance.partition("-")[0] for instance in self._running().values()}
            return bool(first) and bool(uuids & new) and bool(uuids & before)

        return both

    def reopen(self, count: int = 1) -> Effect | None:
        """Shards that were done are made again."""
        done = self.job.done()
        if not done:
            return None
        chosen = self.random.sample(sorted(done), min(count, len(done)))
        command = (sys.executable, "-m", "hpc.rerun", str(self.run.path), "--shards", ",".join(chosen), "--no-submit")
        if self.command(*command).returncode:
            return None

        def again() -> bool:
            states = self.job.states()
            return all(states[i].generation > done[i] and states[i].status == DONE for i in chosen)

        return again

    def _status(self) -> Effect:
        """Status answers in time, whatever state the run and the controller are in."""
        started = time.monotonic()
        done = self.command(sys.executable, "-m", "hpc.status", str(self.run.path), "--json")
        assert done.returncode in (Exit.COMPLETE, Exit.INCOMPLETE), done.stderr
        facts = json.loads(done.stdout)["shards"]
        assert sum(facts[s] for s in ("done", "running", "open", "failed")) == facts["total"], facts
        assert time.monotonic() - started < 30
        return lambda: True


def _deaths(told: Path, engine: int) -> int:
    """How often a slot's journal says that this engine of its was killed."""
    events = [e for e in journal.read(told)[0] if e["event"] == "engine" and e["engine"] == engine]
    return sum(str(e["died"]).endswith("killed by SIGKILL") for e in events)


def _number_inside(process: psutil.Process) -> int:
    """A process's number inside its node, as its heartbeat has it: each node has a process table of its own."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])
