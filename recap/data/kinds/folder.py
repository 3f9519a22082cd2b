"""Folders of images, read through frozen lists of their files (`recap.data.file_list`). `Block.origin` is the byte of
the list's line at which a block begins.

The members of a sample are the image, the files of the same name (`a.txt`, `a.json`) and the columns of the image's row
in the folder's metadata. Where there is no file `a.json`, the whole row is the member `json`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from hpc.base.errors import ShardError
from hpc.base.remote_files import file_system
from hpc.operator import Damage, Shard
from recap.data.archive import LARGEST_MEMBER
from recap.data.blocks import Block, ShardBlocks
from recap.data.file_list import ENDING, Entry, ListedFile, read_entries, read_folder
from recap.data.kind import Wanted
from recap.data.kinds.table import FOR_TEXT, Keys
from recap.data.remote import retry
from recap.data.tars import Sample

CHANGED, FORBIDDEN = "changed since it was listed", "may not be read"
_AHEAD = 8  # samples whose files are read at the same time


class Folder:
    """See `recap.data.kind.Kind`."""

    name = "folder list"
    endings: tuple[str, ...] = (ENDING,)

    def expected(self, how: str, uris: Sequence[str], known: AbstractSet[str]) -> dict[str, int]:
        found = {}
        for uri in uris if how != "none" else []:
            with open(uri, "rb") as file:
                found[uri] = max(sum(1 for _ in file) - 1, 0)
        return found

    def check(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        return f"{sum(shard.expected or 0 for shard in shards):,} images"

    def check_ranges(self, shards: Sequence[Shard]) -> None:
        """Blocks of all lists can be read alone."""

    def samples(self, shard: Shard, wanted: Wanted, blocks: ShardBlocks) -> Generator[Sample | Damage]:
        with open(shard.uri, "rb") as file:
            files = _Files(read_folder(file, shard.uri), wanted)
            yield from files.samples(files.placed(read_entries(file, shard.uri), blocks))

    def scan(self, shard: Shard, wanted: Wanted) -> ShardBlocks:
        made = ShardBlocks()
        with open(shard.uri, "rb") as file:
            files = _Files(read_folder(file, shard.uri), Wanted(key=wanted.key))
            for _ in files.placed(read_entries(file, shard.uri), made):
                pass
        return made

    def block(self, shard: Shard, block: Block, wanted: Wanted, read: Callable[[int], None]) -> list[Sample]:
        with open(shard.uri, "rb") as file:
            files = _Files(read_folder(file, shard.uri), wanted)
            file.seek(block.origin)
            entries = [entry for _, entry in islice(read_entries(file, shard.uri), block.count)]
        read(sum(entry.image.size for entry in entries))
        return list(files.samples((files.named(entry), entry) for entry in entries))


class _Files:
    """Reads the files that the lists of one folder name."""

    def __init__(self, folder: str, wanted: Wanted) -> None:
        self._wanted = wanted
        self._system: Any
        self._system, root = (None, folder) if "://" not in folder else file_system(folder)
        self._root = root.rstrip("/")
        self._keys = Keys(own=True)

    def placed(self, entries: Iterable[tuple[int, Entry]], blocks: ShardBlocks) -> Iterator[tuple[Sample, Entry]]:
        """(sample without members, entry) for each entry of a list, counted in `blocks`.

        Args:
            entries: (byte of the line, entry) of all lines of the list.
        """
        count = size = 0
        for at, entry in entries:
            sample = self.named(entry)
            blocks.add_row(count, sample, size, at, 0)
            yield sample, entry
            count, size = count + 1, size + entry.image.size
        blocks.close(count, size)
        blocks.ended = True

    def samples(self, entries: Iterable[tuple[Sample, Entry]]) -> Iterator[Sample]:
        """The samples with their members, in order. A few are read ahead."""
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="files") as pool:
            waiting: deque[Future[Sample]] = deque()
            for sample, entry in entries:
                waiting.append(pool.submit(self._fill, sample, entry))
                if len(waiting) == _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def named(self, entry: Entry) -> Sample:
        """A sample without members. Its key is the metadata's where `Wanted.key` names a column, else the list's."""
        own = (entry.row or {}).get(self._wanted.key) if self._wanted.key else None
        return self._keys.sample(str(entry.key if own in (None, "") else own).encode("utf-8", "replace"), 0)

    def _fill(self, sample: Sample, entry: Entry) -> Sample:
        members = self._wanted.members
        files = {e: f for e, f in entry.beside.items() if members is None or e in members}
        if self._wanted.image:
            files[_extension(entry.image.path)] = entry.image
        for extension, listed in files.items():
            data, odd = self._read(listed)
            if data is not None:
                sample.members[extension] = data
            elif odd:
                sample.odd[extension] = odd
        if entry.row is not None:
            for name, value in _of_row(entry.row, members).items():
                sample.members.setdefault(name, value)
        return sample

    def _read(self, listed: ListedFile) -> tuple[bytes | None, str]:
        """(a file's bytes, why it has none). Both are empty where the file is gone."""
        if listed.size > LARGEST_MEMBER:
            return None, f"larger than {LARGEST_MEMBER >> 20} MiB"
        path = f"{self._root}/{listed.path}"
        try:
            if self._system is None:
                with open(path, "rb") as file:
                    data = file.read(listed.size + 1)
            else:
                data = retry(lambda: bytes(self._system.cat_file(path)), path)
        except (FileNotFoundError, IsADirectoryError):
            return None, ""
        except PermissionError:
            return None, FORBIDDEN
        except ShardError as error:
            if error.transient:
                raise
            return None, FORBIDDEN if "forbidden" in error.reason else ""
        return (data, "") if len(data) == listed.size else (None, CHANGED)


def _extension(path: str) -> str:
    return path.rpartition(".")[2].lower()


def _of_row(row: dict[str, Any], wanted: AbstractSet[str] | None) -> dict[str, bytes]:
    """The members that a row of metadata gives: each column by its name, its text column as txt, the row as json."""
    named = {name.lower(): value for name, value in row.items() if value is not None}
    found = {name: _cell(value) for name, value in named.items() if wanted is not None and name in wanted}
    text = next((named[name] for name in ("txt", *FOR_TEXT) if name in named), None)
    if text is not None and (wanted is None or "txt" in wanted):
        found.setdefault("txt", _cell(text))
    if wanted is None or "json" in wanted:
        found.setdefault("json", _cell(row))
    return found


def _cell(value: Any) -> bytes:
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace")
