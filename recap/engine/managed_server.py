"""A server that an engine starts for itself, on its own GPUs and a free port: waited for until it is healthy, started
again when it dies or hangs, and ended with the engine by a keeper (`hpc.base.keeper`), whatever ends the engine.

Its command line has `{port}`, `{gpus}` and settings such as `{model}` and `{slots}` filled in; no shell reads it.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from hpc.base.errors import UserError
from recap.engine.settings import WriterConfig

log = logging.getLogger("server")

LOOK_S = 1.0  # between two looks at its health
HEALTH_S = 5.0  # that one answer about its health may take
RESTARTS = 3  # in a row, without an answer to anybody, after which the engine gives up
_TAIL = 8  # lines of its log that an error shows


class ManagedServer:
    """One server. Call `start`, then `close`; in between `address` says where it is.

    Args:
        moved: told each new base URL.
        stuck: whether all requests wait for it, although it may say that it is healthy.
    """

    def __init__(self, config: WriterConfig, moved: Callable[[str], None], stuck: Callable[[], bool]) -> None:
        self.config, self.settings = config, config.server
        self._moved, self._stuck = moved, stuck
        self.log = _log_file()
        self.failure: Exception | None = None  # why there will be no server any more
        self.state = ""  # what is being done about it; "" while it is there
        self._keeper: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._barren = 0  # restarts without an answer to anybody
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Returns when it is healthy. UserError where it never gets so: names its log."""
        try:
            self._launch()
        except UserError:
            self._end()
            raise
        self._thread.start()

    def served(self) -> None:
        """It has answered somebody."""
        self._barren = 0

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        self._end()

    def _launch(self) -> None:
        self._port = _free_port()
        command = command_line(self.config, self._port)
        log.info("starting %s; its log: %s", " ".join(command), self.log)
        # The code of this run must not stand on the path of a server that has a Python of its own.
        clean = ["env", "-u", "PYTHONPATH", *(f"{name}={value}" for name, value in self.settings.env.items())]
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "hpc.base.keeper", "--log", str(self.log), *clean, *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + self.settings.start_s
        while not self._healthy():
            if (code := self._keeper.poll()) is not None:
                raise UserError(f"captioner.server: it ended with {code} before it was healthy. {self._last_words()}")
            if time.monotonic() > end or self._closed.is_set():
                raise UserError(
                    f"captioner.server: {self._url()} was not healthy within captioner.server.start_s="
                    f"{self.settings.start_s:g} s. {self._last_words()}"
                )
            self._closed.wait(0.2)
        log.info("healthy on port %d", self._port)
        self._moved(f"http://127.0.0.1:{self._port}{self.settings.path}")

    def _watch(self) -> None:
        well = time.monotonic()
        while not self._closed.wait(LOOK_S):
            why = ""
            if self._keeper is not None and (code := self._keeper.poll()) is not None:
                why = f"it ended with {code}"
            elif self._healthy() and not self._stuck():
                well = time.monotonic()
            elif time.monotonic() - well > self.settings.hang_s:
                why = f"it has answered nobody for {self.settings.hang_s:g} s"
            if not why:
                continue
            self.state = f"server: {why}; starting it again"
            self._barren += 1
            try:
                if self._barren > RESTARTS:
                    raise UserError(f"captioner.server: {why}, for the {self._barren}th time. {self._last_words()}")
                log.warning("%s; starting it again", why)
                self._end()
                self._launch()
            except UserError as error:
                self.failure = error
                return
            self.state, well = "", time.monotonic()

    def _end(self) -> None:
        """The whole tree, by its keeper."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(timeout=30)
        except subprocess.TimeoutExpired:
            log.error("the keeper of the server cannot end its processes")

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=HEALTH_S)
        try:
            connection.request("GET", self.settings.health)
            return 200 <= connection.getresponse().status < 300
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.settings.health}"

    def _last_words(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()[-_TAIL:]
        return f"Its log: {self.log}" + (", which ends: " + " | ".join(filter(None, lines)) if lines else ", is empty")


def command_line(config: WriterConfig, port: int) -> list[str]:
    """The server's command with its places filled in: {port}, {gpus}, {served_model}, and settings by their names."""
    plain = {item.name: getattr(config, item.name) for item in fields(WriterConfig)}
    places = {f"{{{name}}}": str(value) for name, value in plain.items() if isinstance(value, int | float | str)}
    places |= {"{port}": str(port), "{served_model}": config.served_name, "{gpus}": str(gpus_seen())}
    found = []
    for word in config.server.command:
        for place, value in places.items():
            word = word.replace(place, value)
        found.append(word)
    return found


def gpus_seen() -> int:
    """GPUs of this engine (cluster.gpus_per_engine), by its CUDA_VISIBLE_DEVICES; 1 on a CPU."""
    return max(1, len([device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log_file() -> Path:
    """Beside the slot's log, where there is one."""
    slot = os.environ.get("HPC_LOG", "")
    if slot:
        path = Path(slot)
        path = path.with_name(f"{path.stem}.server-{os.getpid()}.log")
    else:
        path = Path(tempfile.gettempdir()) / f"recap-server-{os.getpid()}.log"
    path.touch()
    return path
