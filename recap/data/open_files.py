"""Parquet files that are kept open, of one place: columns that lie in the same files open each of them once."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import pyarrow.parquet as pq

from recap.data.remote_parquet import RemoteParquet

MOST = 256  # footers that are kept
FRESH = 32  # of these, files that have what was brought when they were opened, for columns that read the same rows


@dataclass(slots=True)
class _Open:
    """A file, which one thread at a time opens, reads and closes. None inside: there is none."""

    lock: Lock = field(default_factory=Lock)
    file: pq.ParquetFile | None = None
    doubt: str = ""
    ready: bool = False


class OpenFiles:
    """By shard. Threads that want different files do not wait for one another."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._fresh: deque[RemoteParquet] = deque()
        self._lock = Lock()  # of the dictionary, never held while a file is read

    @contextmanager
    def file(
        self, shard: str, opened: Callable[[], tuple[pq.ParquetFile | None, str]]
    ) -> Iterator[tuple[pq.ParquetFile | None, str]]:
        """The file of a shard, to oneself, and why it may be another's (see `recap.data.column.Values.doubt`).

        Args:
            opened: opens it, where it is not open; None: the shard has none.
        """
        while True:
            entry = self._entry(shard)
            with entry.lock:
                with self._lock:
                    if self._open.get(shard) is not entry:  # closed while we waited for it
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
                    old.file.close(force=True)  # with what it reads from, which may be an open file of ours
        return entry
