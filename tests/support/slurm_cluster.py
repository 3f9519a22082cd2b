"""A real Slurm for tests: three virtual nodes with two fake GPUs each, on this machine (see mini-slurm)."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
_MINI_SLURM = str(ROOT / "tests/support/mini-slurm")
NODES, GPUS = 3, 2


def wait(condition: Callable[[], object], what: str, timeout: float = 240.0) -> None:
    """Poll until `condition` holds; AssertionError with `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"after {timeout:.0f} s still not: {what}"
        time.sleep(0.1)


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; it may end, and be reaped, at any moment."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class NoSlurm(Exception):
    """Slurm cannot be had here; the text's last line says why."""


_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


@dataclass(frozen=True)
class Element:
    """One array element as `scontrol show job` tells it."""

    state: str
    restarts: int
    code: str
    node: str

    @property
    def over(self) -> bool:
        return self.state in _FINAL


def _sweep() -> None:
    """Stop clusters that killed test sessions have left behind: their daemons live on."""
    for left in Path("/tmp").glob("slurm-test-*-*"):
        pid = left.name.split("-")[2]
        if left.owner() == getpass.getuser() and not Path("/proc", pid).exists():
            env = {**os.environ, "MINI_SLURM_DIR": str(left)}
            subprocess.run([_MINI_SLURM, "down", "--wipe"], env=env, capture_output=True, timeout=240, check=False)
            shutil.rmtree(left, ignore_errors=True)


class Cluster:
    """Started by the constructor. Its files lie under a short path: sockets' names may have 108 bytes.

    Args:
        nodes, gpus: how many nodes, and fake GPUs of each.
    """

    def __init__(self, nodes: int = NODES, gpus: int = GPUS) -> None:
        _sweep()
        self._nodes, self._gpus = nodes, gpus
        self._root = Path(tempfile.mkdtemp(prefix=f"slurm-test-{os.getpid()}-", dir="/tmp"))
        self._root.chmod(0o755)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))},
            "MINI_SLURM_DIR": str(self._root),
            "SLURM_CONF": str(self._root / "etc/slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
        }
        done = self.start()
        if done.returncode:
            self.down()
            raise NoSlurm(done.stderr.strip() or f"mini-slurm ended with {done.returncode}")

    def start(self) -> subprocess.CompletedProcess[str]:
        """Start what does not run."""
        return self.mini_slurm("up", "--nodes", str(self._nodes), "--gpus", str(self._gpus), "--no-accounting")

    def mini_slurm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [_MINI_SLURM, *arguments]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=240, check=False)

    def down(self) -> None:
        self.mini_slurm("down", "--wipe")
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command on the "login node"; its stdout. AssertionError unless it exits with `code`."""
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        said = f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, said
        return done.stdout

    def twice_at_once(self, *command: str, second: str) -> str:
        """Run a command twice at the same moment; what the one said whose output has no `second`."""
        two = [
            subprocess.Popen(
                command, env=self.env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for _ in range(2)
        ]
        said = sorted((str(process.communicate()[0]) for process in two), key=lambda text: second in text)
        assert [process.returncode for process in two] == [0, 0], said
        assert second not in said[0] and second in said[1], said
        return said[0]

    def elements(self, job: str) -> dict[int, Element]:
        """The elements of an array that Slurm knows of, by number; pending ones that share a record are left out."""
        found = {}
        for line in self.run("scontrol", "--oneliner", "show", "job", job).splitlines():
            facts = dict(re.findall(r"(\w+)=(\S*)", line))
            if facts.get("ArrayTaskId", "").isdigit():
                found[int(facts["ArrayTaskId"])] = Element(
                    facts["JobState"], int(facts["Restarts"]), facts["ExitCode"], facts["NodeList"]
                )
        return found

    def daemons(self, *words: str) -> list[psutil.Process]:
        """This cluster's daemons whose command line begins with these words."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cmdline()[: len(words)] == list(words):
                    conf = process.environ().get("SLURM_CONF")
                    found += [process] if conf == self.env["SLURM_CONF"] and alive(process) else []
            except psutil.Error:
                continue
        return found

    def drained(self) -> dict[str, str]:
        """Nodes that Slurm has taken out of service by itself, with its reason; {} where it does not answer."""
        told = ("sinfo", "-h", "-N", "-p", "debug", "-t", "drain", "-o", "%N %E")
        done = subprocess.run(told, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    def resume(self, node: str) -> None:
        """What an administrator does with a drained node that is well; may fail where the controller is away."""
        command = ("scontrol", "update", f"nodename={node}", "state=resume")
        subprocess.run(command, env=self.env, capture_output=True, timeout=60, check=False)

    def kill_controller(self) -> bool:
        """kill -9 of slurmctld; whether it lived."""
        try:
            os.kill(int((self._root / "run/slurmctld.pid").read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            return False
        return True

    def kill_node(self, node: str) -> None:
        """As if its power went off."""
        assert self.mini_slurm("node-kill", node).returncode == 0

    def start_node(self, node: str) -> None:
        assert self.mini_slurm("node-start", node).returncode == 0
        state = ("sinfo", "-h", "-N", "-p", "debug", "-n", node, "-o", "%T")
        wait(lambda: self.run(*state).strip() in ("idle", "mixed"), f"{node} is up")
