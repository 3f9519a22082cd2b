"""Folders of images, frozen into lists of their files (`recap.data.file_list`), so that a run's input stays the same
whatever is added to the folder.

A list holds at most `data.files_per_shard` images, in the order of their paths. New files make new lists. A changed
file gives its list a new version. A file that is gone becomes a sample without an image.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base import atomic
from hpc.base.errors import ShardError, UserError
from hpc.base.remote_files import file_system
from hpc.operator import Shard
from recap.data.file_list import ENDING, Entry, ListedFile, content, digest, read_entries, read_folder
from recap.data.folder_metadata import NAMES, Metadata
from recap.data.image_bytes import NOT_READ
from recap.data.walk import walk


@dataclass
class Frozen:
    """The lists of one folder or several, as shards.

    new: contents, by path, of the lists that are to be written.
    notes: sentences about what is odd in the folder, for a dry run.
    """

    shards: list[Shard] = field(default_factory=list)
    new: dict[Path, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Frozen) -> None:
        self.shards += other.shards
        self.new |= other.new
        self.notes += other.notes

    def write(self, folder: Path) -> None:
        """Write the new lists into a folder. A list that is there already is replaced: its images have changed."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in self.new.items():
            atomic.replace(folder / path.name, data, durable=True)


def freeze(
    folder: str, lists: Path, known: Sequence[Shard], images: Sequence[str], each: int, taken: Iterable[str] = ()
) -> Frozen:
    """The lists of a folder's images: the known ones, updated where files changed, and new ones for new files.

    Args:
        folder: path or URL.
        lists: the directory of lists.
        known: shards that are lists already, of any folder.
        images: extensions of image files.
        each: the most images of a list.
        taken: ids of other folders' new lists.
    """
    entries = _entries(walk(folder), folder, images)
    made, listed = Frozen(), set[str]()
    for shard in known:
        of, old = _read(shard)
        if of != folder:
            continue
        listed.update(entry.image.path for entry in old)
        now = _unique([entries.rows.get(entry.image.path, entry) for entry in old], [entry.key for entry in old])
        if (etag := digest(now)) != digest(old):
            made.new[Path(shard.uri)] = content(folder, now)
        made.shards.append(Shard(shard.id, shard.uri, _bytes(now), etag, len(now)))
    fresh = [entry for path, entry in entries.rows.items() if path not in listed]
    slug = _slug(folder, {*taken, *(shard.id for shard in known)}, made.shards)
    for number, start in enumerate(range(0, len(fresh), each), len(made.shards)):
        part = _unique(fresh[start : start + each])
        path = lists / f"{slug}-{number:06d}{ENDING}"
        made.new[path] = content(folder, part)
        made.shards.append(Shard(path.stem, str(path), _bytes(part), digest(part), len(part)))
    gone = len(listed - entries.rows.keys())
    made.notes = [*entries.notes, *([f"{gone:,} images are gone: `image: missing`"] if gone else [])]
    return made


@dataclass
class _Entries:
    rows: dict[str, Entry]  # by the image's path, in its order
    notes: list[str]


def _entries(files: dict[str, ListedFile], folder: str, images: Sequence[str]) -> _Entries:
    """Every image of a folder, with the files of its name and its row of metadata."""
    extensions = {*images, *NOT_READ}
    pictures = {path: _split(path) for path in sorted(files) if _split(path)[1] in extensions}
    beside: dict[str, dict[str, ListedFile]] = {}
    for path, found in sorted(files.items()):
        stem, extension = _split(path)
        if path not in pictures and extension and posixpath.basename(path) not in NAMES:
            beside.setdefault(stem, {})[extension] = found
    metadata = Metadata([path for path in files if posixpath.basename(path) in NAMES], _reader(folder))
    rows = {
        path: Entry(_key(stem), files[path], beside.get(stem, {}), metadata.rows.get(path))
        for path, (stem, _) in pictures.items()
    }
    return _Entries(rows, metadata.mismatches(rows))


def _split(path: str) -> tuple[str, str]:
    """(path without its extension, extension in lower case)"""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension.lower()) if dot and "/" not in extension else (path, "")


def _key(stem: str) -> str:
    """A path as a key: dots in the file's name become underscores, since a key in a tar ends at its first dot."""
    head, slash, base = stem.rpartition("/")
    return f"{head}{slash}{base.replace('.', '_')}"


def _unique(entries: Sequence[Entry], keys: Sequence[str] = ()) -> list[Entry]:
    """The entries, each with a key of its own. keys: those that they had; else two files of one stem get two keys."""
    names = Counter(entry.key for entry in entries)
    found, taken = [], set[str]()
    for number, entry in enumerate(entries):
        key = keys[number] if keys else entry.key
        if not keys and names[key] > 1:
            key = f"{key}_{_split(entry.image.path)[1]}"
        while key in taken:
            key = f"{key}_{number}"
        taken.add(key)
        found.append(Entry(key, entry.image, entry.beside, entry.row))
    return found


def _reader(folder: str) -> Callable[[str], bytes]:
    system, root = file_system(folder)

    def read(path: str) -> bytes:
        return bytes(system.cat_file(f"{root.rstrip('/')}/{path}"))

    return read


def folder_of(shard: Shard) -> str:
    """The folder whose images a list names. UserError where it cannot be read."""
    return _read(shard)[0]


def _read(shard: Shard) -> tuple[str, list[Entry]]:
    """(folder, entries) of a list. UserError where it cannot be read."""
    try:
        with open(shard.uri, "rb") as file:
            return read_folder(file, shard.uri), [entry for _, entry in read_entries(file, shard.uri)]
    except (OSError, ShardError) as error:
        raise UserError(
            f"plan: {shard.uri}, which says which images shard {shard.id} is made of, cannot be read ({error}). Put it "
            "back, or choose another `name=`."
        ) from error


def _bytes(entries: Iterable[Entry]) -> int:
    return sum(entry.image.size for entry in entries)


def _slug(folder: str, names: set[str], mine: Sequence[Shard]) -> str:
    """The beginning of the lists' names: the folder's name, made safe and different from other folders'."""
    if mine:
        return mine[0].id.rpartition("-")[0]
    base = re.sub(r"[^A-Za-z0-9=+@,._-]", "_", folder.rstrip("/").rpartition("/")[2])[:100].lstrip(".") or "images"
    slug, number = base, 1
    while any(name.rpartition("-")[0] == slug for name in names):
        number += 1
        slug = f"{base}_{number}"
    return slug
