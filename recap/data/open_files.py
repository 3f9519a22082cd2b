"""Parquet files that are kept open. Columns that lie in the same files share them, so that each is opened once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import pyarrow.parquet as pq

from recap.data.remote_parquet import RemoteParquet

MOST = 256  # files that are kept open, with their footers
FRESH = 32  # of these, the last opened ones keep the bytes of their first request (see RemoteParquet.forget)


@dataclass(slots=True)
class _Open:
    """A file, which one thread at a time opens, reads and closes. ready: it was opened. file: None where there is
    none."""

    lock: Lock = field(default_factory=Lock)
    file: pq.ParquetFile | None = None
    doubt: str = ""
    ready: bool = False


class OpenFiles:
    """Open files by shard. Threads that want different files do not wait for one another."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._fresh: deque[RemoteParquet] = deque()
        self._lock = Lock()  # guards _open; never held while a file is read

    @contextmanager
    def file(
        self, shard: str, opened: Callable[[], tuple[pq.ParquetFile | None, str]]
    ) -> Iterator[tuple[pq.ParquetFile | None, str]]:
        """(the file of a shard, recap.data.column.Values.doubt). No other thread uses the file inside the `with`.

        Args:
            opened: opens the file where it is not open yet; it returns None for a shard without a file.
        """
        while True:
            entry = self._entry(shard)
            with entry.lock:
                with self._lock:
                    if self._open.get(shard) is not entry:  # it was closed while this thread waited
                        continue
                if not entry.ready:
                    entry.file, entry.doubt = opened()
                    entry.ready = True
                    if isinstance(entry.file, RemoteParquet):
                        self._forget_older_than(entry.file)
                yield entry.file, entry.doubt
                return

    def _forget_older_than(self, file: RemoteParquet) -> None:
        with self._lock:
            self._fresh.append(file)
            if len(self._fresh) > FRESH:
                self._fresh.popleft().forget()

    def _entry(self, shard: str) -> _Open:
        old = None
        with self._lock:
            entry = self._open.setdefault(shard, _Open())
            self._open.move_to_end(shard)
            if len(self._open) > MOST:
                _, old = self._open.popitem(last=False)
        if old is not None:
            with old.lock:
                if old.file is not None:
                    old.file.close(force=True)  # also closes the Python file that it reads from
        return entry
