"""Kill a process at its N-th call of a real system call, cheaply: a warm fork is traced by strace from its first step
on.

`strace -e inject=link:signal=KILL:when=3` kills at the entry of the third link(2): everything before it has happened,
the call itself has not.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("link", "rename", "fsync", "openat", "write", "pwrite64", "fdatasync", "unlink", "mkdir", "rmdir")
HAVE_STRACE = shutil.which("strace") is not None


class Forks:
    """A warm process (`python -m tests.support.crash_owner`) that forks itself for every life: no import, no thread."""

    def __init__(self) -> None:
        root = Path(__file__).resolve().parents[2]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crash_owner"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> int:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        ready, _, _ = select.select([self._server.stdout], [], [], 60)
        assert ready, f"no answer to {request}"
        return int(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()


class Fork:
    """A function of tests.support.crash_owner in a process of its own, which stands still until `go()`."""

    def __init__(self, forks: Forks, result: Path, task: str, *arguments: Any) -> None:
        self._forks, self._result = forks, result
        result.unlink(missing_ok=True)
        self.pid = forks.ask(task=task, arguments=arguments, result=str(result))

    def go(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def code(self) -> int:
        """Its exit code, negative for a signal, once it has ended."""
        return self._forks.ask(wait=self.pid)

    def result(self) -> Any:
        """What the function returned; None if it was killed. To be asked for after `code()`."""
        text = self._result.read_text() if self._result.exists() else ""  # empty: killed while it wrote
        return json.loads(text) if text else None


@dataclass
class Trace:
    """The calls that a traced process made: (name, rest of strace's line)."""

    calls: list[tuple[str, str]]

    @property
    def last(self) -> tuple[str, str]:
        return self.calls[-1]


class Traced:
    """A fork under strace, killed at the `when`-th `call` (never, if `call` is empty), or what else `fault` says."""

    def __init__(self, fork: Fork, log: Path, call: str = "", when: int = 0, fault: str = "signal=KILL") -> None:
        self.fork, self._log = fork, log
        which = ["-e", f"trace={','.join(CALLS)}"]
        if call:
            which += ["-e", f"inject={call}:{fault}:when={when}"]
        self._strace = subprocess.Popen(
            ["strace", "-qq", "-s", "200", "-y", "-p", str(fork.pid), "-o", str(log), *which],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        end = time.monotonic() + 30
        while not self._attached():
            assert self._strace.poll() is None and time.monotonic() < end, "strace did not attach"
            time.sleep(0.001)
        fork.go()

    def _attached(self) -> bool:
        """It stands still, so it makes no call before strace has seen it."""
        found = re.search(r"^TracerPid:\s+(\d+)", Path(f"/proc/{self.fork.pid}/status").read_text(), re.M)
        return found is not None and int(found[1]) == self._strace.pid

    def so_far(self) -> str:
        return self._log.read_text(errors="replace")

    def finish(self) -> Trace:
        self._strace.wait(60)
        assert self._strace.stderr is not None
        self._strace.stderr.close()
        return Trace(re.findall(r"^(?:\d+ +)?(\w+)\((.*)$", self._log.read_text(errors="replace"), re.M))
