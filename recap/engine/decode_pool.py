"""A pool of decode processes that write pixels into a ring in shared memory.

One thread for each process feeds it an image at a time and reads the answer, so that a process that dies (a
decoder that crashes, the out-of-memory killer) or hangs costs exactly the image it held; a new one takes its
place. Processes, not threads: Pillow's Python parts do not scale past one core under the interpreter lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.decode import Geometry
from recap.engine.decode_worker import HEADER, NEEDS
from recap.engine.rings import Rings
from recap.engine.settings import CaptionerConfig


@dataclass(frozen=True)
class Decoded:
    """What became of an image: `place` holds its pixels if `reason` is empty, and must be released.

    note: what is odd about it though it was decoded.
    """

    id: int
    place: int
    reason: str = ""
    detail: str = ""
    transient: bool = False
    note: str = ""


class DecodePool:
    """Decodes images in `workers` processes (0: in `poll`, in this process).

    Args:
        geometry: the square to make, which `ring` holds.
        places: places in the ring; no more than this many images are decoded and not yet released.
        timeout_s: an image that takes longer is given up, and its process killed.
        memory: what images above `recap.data.memory.FREE` may take together while they are decoded; 2 GiB.
        beside: further squares of the same image, decoded once; `rings.views` holds all.
    """

    def __init__(
        self, geometry: Geometry, places: int, workers: int, max_pixels: int, fast: bool, timeout_s: float,
        memory: Memory | None = None, beside: Sequence[Geometry] = (),
    ) -> None:  # fmt: skip
        self.geometries, self.max_pixels, self.fast, self.timeout_s = [geometry, *beside], max_pixels, fast, timeout_s
        self._memory = memory or Memory(2 << 30)
        self.waiting = 0  # images put and not yet polled
        self._fd = _shared_file(Rings.bytes(self.geometries, places))
        self.rings = Rings(self._fd, self.geometries, places)
        self.ring = self.rings.views[0]
        self._free = deque(range(places))
        self._todo: queue.SimpleQueue[tuple[int, int, bytes] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, config: CaptionerConfig, geometry: Geometry, places: int) -> DecodePool:
        """The pool that a captioner's settings ask for."""
        return cls(
            geometry, places, config.decode_workers, config.max_pixels, config.decode == "fast",
            config.decode_timeout_s, Memory(int(config.decode_memory_gb * 2**30)),
        )  # fmt: skip

    def room(self) -> int:
        """How many more images can be put."""
        return len(self._free)

    def put(self, id: int, image: bytes) -> None:
        """Queue an image; never blocks. Raises ValueError if there is no room."""
        if not self._free:
            raise ValueError("The decode ring is full: put() was called while room() is 0. Poll and release first.")
        self._todo.put((id, self._free.popleft(), image))
        self.waiting += 1

    def release(self, place: int) -> None:
        """Give a place of the ring back, once its pixels are no longer needed."""
        self._free.append(place)

    def poll(self, timeout: float = 0.0) -> list[Decoded]:
        """Images decoded or failed since the last call; waits up to `timeout` seconds for the first one."""
        done: list[Decoded] = []
        try:
            if not self._threads and not self._todo.empty():
                job = self._todo.get()
                assert job is not None
                done.append(self._decode_here(*job))
            elif timeout > 0 and self.waiting:
                done.append(self._done.get(timeout=timeout))
            elif timeout > 0:
                time.sleep(min(timeout, 0.002))  # nothing to wait for: callers that wait for more must not spin
            while self._threads:
                done.append(self._done.get_nowait())
        except queue.Empty:
            pass
        self.waiting -= len(done)
        return done

    def close(self) -> None:
        """Stop the processes; images in flight are forgotten."""
        while not self._todo.empty():
            self._todo.get()
        for _ in self._threads:
            self._todo.put(None)
        for process in list(self._processes):
            process.kill()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _decode_here(self, id: int, place: int, image: bytes) -> Decoded:
        try:
            encoded = EncodedImage(image, self.max_pixels)
            note = self.rings.fill(place, encoded, self.fast)
        except BadImage as error:
            return Decoded(id, place, error.reason, error.detail)
        return Decoded(id, place, note=note)

    def _serve(self) -> None:
        """Thread of one process: hand it an image, wait for the answer, replace it when it dies."""
        # A child inherits its thread's mask: it must not be hit by a signal to the whole step before it can
        # ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})
        process: subprocess.Popen[bytes] | None = None
        while (job := self._todo.get()) is not None:
            process = process or self._start()
            id, place, image = job
            try:
                reason, detail, note = self._ask(process, place, image).split("\0", 2)
                self._done.put(Decoded(id, place, reason, detail, note=note))
            except (OSError, EOFError) as error:  # TimeoutError is an OSError
                code = self._stop(process)
                process = None
                late = isinstance(error, TimeoutError)
                reason = "image: decoding took too long" if late else "image: decoder died"
                detail = f"over {self.timeout_s:g} s" if late else f"exit {code}"
                self._done.put(Decoded(id, place, reason, detail, transient=True))
        if process is not None:
            self._stop(process)

    def _stop(self, process: subprocess.Popen[bytes]) -> int:
        self._processes.discard(process)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # bytes that it never read
                pipe.close()  # type: ignore[union-attr]
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {
            "parent": os.getpid(),
            "fd": self._fd,
            "places": len(self.ring),
            "geometries": [asdict(geometry) for geometry in self.geometries],
            "max_pixels": self.max_pixels,
            "fast": self.fast,
        }
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        process = subprocess.Popen(
            [sys.executable, "-m", "recap.engine.decode_worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._fd],
            # One thread a process: the pool is the parallelism, and OpenBLAS would start one a core.
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._processes.add(process)
        return process

    def _ask(self, process: subprocess.Popen[bytes], place: int, image: bytes) -> str:
        assert process.stdin and process.stdout
        process.stdin.write(HEADER.pack(place, len(image)) + image)
        process.stdin.flush()
        answered, length = self._head(process)
        if answered == NEEDS:
            with self._memory.reserved(length << 20):
                process.stdin.write(b"1")
                process.stdin.flush()
                answered, length = self._head(process)
        if answered != place:
            raise OSError(f"answer for place {answered}, expected {place}")
        deadline = time.monotonic() + self.timeout_s
        return _read(process.stdout.fileno(), length, deadline).decode("utf-8", "replace")

    def _head(self, process: subprocess.Popen[bytes]) -> tuple[int, int]:
        assert process.stdout
        deadline = time.monotonic() + self.timeout_s
        answered, number = HEADER.unpack(_read(process.stdout.fileno(), HEADER.size, deadline))
        return answered, number


def _read(fd: int, count: int, deadline: float) -> bytes:
    """Exactly `count` bytes of a pipe, or EOFError, or TimeoutError."""
    parts: list[bytes] = []
    poll = select.poll()  # not select(): engines hold more than 1024 descriptors at times
    poll.register(fd, select.POLLIN)
    while count > 0:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        if not (part := os.read(fd, count)):
            raise EOFError("the decode process is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _shared_file(size: int) -> int:
    """Descriptor of anonymous shared memory: it is freed when the last process that holds it dies."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("recap-ring", os.MFD_CLOEXEC)
    else:
        fd, name = tempfile.mkstemp()
        os.unlink(name)
    os.ftruncate(fd, size)
    return fd
