"""What asking a judge costs beside the judge: how full its window is, and what the process holds after many answers.

python -m benchmarks.judges window [--window 16] [--rows 2000] [--check]   share of a loopback server's window that is
                                                                           busy, with 50 ms an answer; --check: 95 %
python -m benchmarks.judges memory [--check]                               resident memory after 2,000 and after 20,000
                                                                           judgements; --check: 20 MB apart at most
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.timing import say
from hpc import config as configs
from hpc.base.errors import Parser
from hpc.operator import Item, Row
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from recap.worlds import shapes

LATENCY_S = 0.05
BUSY, APART_MB = 0.95, 20.0
_ANSWER = json.dumps({"model": "judge", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()


class _Server:
    """Answers after 50 ms, and adds up how long it held how many requests."""

    def __init__(self) -> None:
        self.held, self.spans = 0, 0.0
        self.changed = 0.0

    def hold(self, more: int) -> None:
        now = time.monotonic()
        self.spans += self.held * (now - self.changed)
        self.held, self.changed = self.held + more, now

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
                await reader.readexactly(int(length))
                self.hold(1)
                await asyncio.sleep(LATENCY_S)
                self.hold(-1)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_ANSWER), _ANSWER))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()


def _serve(pipe: Connection) -> None:
    """In a process of its own: says its port; for each word that it is sent, what it has added up."""

    async def run() -> None:
        state = _Server()
        server = await asyncio.start_server(state.talk, "127.0.0.1", 0, backlog=1024, limit=1 << 24)
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv) is not None:
            state.hold(0)
            pipe.send(state.spans)
        os._exit(0)  # connections that clients keep open are no matter here

    asyncio.run(run())


@contextmanager
def serving() -> Iterator[tuple[str, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1", ours
    finally:
        ours.send(None)
        process.join(10)


def _job(folder: Path, url: str, rows: int, window: int) -> GenerateOperator:
    """A judge of `rows` captions, each of an image."""
    shapes.write_shard(folder / "0.tar", seed=1, first=0, samples=rows, side=64)
    keys = [f"{number:08d}" for number in range(rows)]
    texts = [f"A caption of an image, the {key}th of many, of some length." for key in keys]
    pq.write_table(pa.table({"key": keys, "caption": texts}), folder / "0.parquet", row_group_size=512)
    tree: dict[str, Any] = {
        "data": {"shards": [str(folder / "0.tar")], "columns": {"c": {"folder": str(folder), "field": "caption"}}},
        "writer": {"backend": "openai", "endpoint": url, "served_model": "judge", "window": window},
        "formats": {"judge": {"text": "{c}\nIs it so? yes or no"}}, "parse": {"verdict": ["yes", "no"]},
    }  # fmt: skip
    work = GenerateOperator(configs.structured(GenerateConfig, tree, "benchmark"))
    work.setup("cpu")
    return work


def _drive(work: GenerateOperator, items: Iterator[Item]) -> Iterator[list[Row]]:
    """As an engine process does: no more is put than is wanted."""
    flying, more = 0, True
    while more or flying:
        while more and work.want() > 0:
            item = next(items, None)
            more = item is not None
            if item is not None:
                work.put(item)
                flying += 1
        rows = work.poll(0.2)
        flying -= len(rows)
        yield rows


def _items(work: GenerateOperator) -> Iterator[Item]:
    return (item for item in work.read(work.plan()[0]) if isinstance(item, Item))


def busy(rows: int, window: int) -> tuple[float, float]:
    """Share of the server's window that is busy while there is more to ask, and CPU milliseconds a row here."""
    with tempfile.TemporaryDirectory() as folder, serving() as (url, pipe):
        work = _job(Path(folder), url, rows, window)
        items = iter(list(_items(work)))  # read ahead, as an engine's reader does
        done, begun, spans, found, cpu = 0, 0.0, 0.0, 0.0, time.process_time()
        for answered in _drive(work, items):
            done += len(answered)
            if not begun and done >= 2 * window:
                pipe.send("so far?")
                spans, begun = pipe.recv(), time.monotonic()
            if done < rows - 2 * window:
                continue
            pipe.send("now?")
            found = (pipe.recv() - spans) / (time.monotonic() - begun) / window
            break
        cpu = (time.process_time() - cpu) * 1000 / done
        work.close()
    return found, cpu


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(first: int = 2_000, last: int = 20_000, window: int = 64) -> tuple[float, float]:
    """Resident megabytes of the judging process after the first and after the last of so many judgements."""
    with tempfile.TemporaryDirectory() as folder, serving() as (url, _):
        work = _job(Path(folder), url, last, window)
        done, early = 0, 0.0
        for answered in _drive(work, _items(work)):
            done += len(answered)
            if not early and done >= first:
                early = resident_mb()
        late = resident_mb()
        work.close()
    return early, late


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=["window", "memory"])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the bound is not held")
    args = parser.parse_args()
    if args.what == "window":
        share, cpu = busy(args.rows, args.window)
        say(f"{share:.1%} of a window of {args.window} busy, 50 ms an answer, {cpu:.2f} ms CPU a row")
        held = share >= BUSY
    else:
        early, late = memory()
        say(f"{early:.1f} MB after 2,000 judgements, {late:.1f} MB after 20,000")
        held = late - early <= APART_MB
    return int(args.check and not held)


if __name__ == "__main__":
    sys.exit(main())
