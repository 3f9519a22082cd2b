"""Where conversations and images come from: LLaVA's JSON, our own columns, generated worlds.

Texts are held in memory or made on demand; images are read only by the rank that needs them.
"""

from __future__ import annotations

import bisect
import glob
import importlib
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
from PIL import Image

from hpc.errors import UserError
from hpc.published import Published
from hpc.rundir import Run
from recap.data.images import BadImage, decode_rgb
from recap.sft.settings import Source
from recap.sft.templates import IMAGE, BadSample
from recap.train.order import draw

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Example:
    """One conversation. images: what `Conversations.image` takes, one per image of the conversation."""

    key: str
    turns: list[tuple[str, str]]
    images: list[Any]


class Conversations(Protocol):
    """One source."""

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> Example:
        """The texts of a sample. Raises BadSample."""

    def image(self, handle: Any) -> Image.Image:
        """RGB. Raises BadSample where it is missing or damaged."""


class Corpus:
    """All sources, one after another, each as often as its `repeat` says."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources = [_open(source, seed) for source in sources]
        self._sizes = [
            min(len(opened), source.samples or len(opened)) * source.repeat
            for opened, source in zip(self.sources, sources, strict=True)
        ]
        self._single = [size // source.repeat for size, source in zip(self._sizes, sources, strict=True)]
        self._ends = [sum(self._sizes[: n + 1]) for n in range(len(self._sizes))]
        if not self._ends[-1]:
            raise UserError("data: the sources hold no sample")

    def __len__(self) -> int:
        return self._ends[-1]

    def find(self, index: int) -> tuple[Conversations, int]:
        """(source, index in it) of a sample of the corpus."""
        number = bisect.bisect_right(self._ends, index)
        before = self._ends[number] - self._sizes[number]
        return self.sources[number], (index - before) % self._single[number]


def _open(source: Source, seed: int) -> Conversations:
    kinds: dict[str, Any] = {"llava": LlavaJson, "columns": Columns, "world": World}
    return kinds[source.kind](source, seed)


class LlavaJson:
    """LLaVA's format: [{"id", "image": name or names, "conversations": [{"from": "human" | "gpt", "value"}]}], or the
    same objects one a line. Samples without `image` are text alone."""

    def __init__(self, source: Source, seed: int) -> None:
        path = Path(source.path)
        try:
            text = path.read_text(encoding="utf-8")
            lines = path.suffix == ".jsonl" or not text.lstrip().startswith("[")
            self._rows = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
        except (OSError, ValueError) as error:
            raise UserError(f"data: {path} cannot be read as LLaVA's JSON: {error}") from error
        self._store = ImageStore(source.images)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, epoch: int) -> Example:
        row = self._rows[index]
        key = str(row.get("id", index)) if isinstance(row, dict) else str(index)
        try:
            names = row.get("image") or []
            names = [names] if isinstance(names, str) else [_text(name) for name in names]
            turns = [(_ROLES[turn["from"]], _text(turn["value"])) for turn in row["conversations"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise BadSample("conversation: not LLaVA's format", f"{key}: {error!r}") from error
        return Example(key, turns, names)

    def image(self, handle: Any) -> Image.Image:
        return _decoded(self._store.read(handle), handle)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class ImageStore:
    """Images by name: in a folder, in zips, or in tars. Archives are listed once, and opened anew in each process."""

    def __init__(self, place: str) -> None:
        self._folder: Path | None = None
        self._tarred: dict[str, tuple[str, int, int]] = {}  # name -> tar, offset, bytes
        self._zipped: dict[str, tuple[str, str]] = {}  # name -> zip, name in it
        self._open: dict[tuple[int, str], Any] = {}
        if not place or Path(place).is_dir():
            self._folder = Path(place)
            return
        files = sorted(glob.glob(place))
        if not files:
            raise UserError(f"data: `images`: {place!r} is neither a folder nor an archive that exists")
        for file in files:
            try:
                self._list(file)
            except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"data: `images`: {file} is neither a zip nor an uncompressed tar ({error}). Unpack or repair it."
                ) from error

    def _list(self, file: str) -> None:
        if file.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                self._zipped.update((os.path.normpath(name), (file, name)) for name in archive.namelist())
            return
        with tarfile.open(file, "r:") as tar:
            members = ((os.path.normpath(m.name), (file, m.offset_data, m.size)) for m in tar if m.isfile())
            self._tarred.update(members)

    @property
    def names(self) -> list[str]:
        """Names of the images in archives."""
        return [name for name in (*self._tarred, *self._zipped) if name.lower().endswith(_IMAGES)]

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises BadSample."""
        try:
            if self._folder is not None:
                return (self._folder / name).read_bytes()
            plain = os.path.normpath(name)
            if plain in self._zipped:
                file, member = self._zipped[plain]
                return self._handle(file, zipfile.ZipFile).read(member)
            file, offset, size = self._tarred[plain]
            return os.pread(self._handle(file, lambda path: os.open(path, os.O_RDONLY)), size, offset)
        except (OSError, KeyError) as error:
            raise BadSample("image: missing", f"{name}: {type(error).__name__}") from error
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted, or compressed oddly
            raise BadSample("image: damaged", f"{name}: {error}") from error

    def _handle(self, path: str, opener: Any) -> Any:
        at = (os.getpid(), path)
        if at not in self._open:
            self._open[at] = opener(path)
        return self._open[at]


class Columns:
    """Images in webdataset tars, their answer in a column of ours: each sample is one question and its caption."""

    def __init__(self, source: Source, seed: int) -> None:
        self._prompts, self._seed = source.prompts, seed
        self._store = ImageStore(source.path)
        captions = _captions(Path(source.column), source.field)
        by_key = {Path(name).stem: name for name in self._store.names}
        self._rows = [(key, by_key[key], text) for key, text in captions.items() if key in by_key]
        if not self._rows:
            raise UserError(f"data: no key of the column {source.column} is the name of an image in {source.path}")

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, epoch: int) -> Example:
        key, name, caption = self._rows[index]
        prompt = self._prompts[draw(self._seed, "prompt", epoch, key) % len(self._prompts)]
        return Example(key, [("user", f"{IMAGE}\n{prompt}"), ("assistant", caption)], [name])

    def image(self, handle: Any) -> Image.Image:
        return _decoded(self._store.read(handle), handle)


def _captions(place: Path, field: str) -> dict[str, str]:
    """key -> text of a run's published column, or of a folder of parquet files; rows that are not ok are left out."""
    if (place / "submissions").is_dir():
        published = Published(Run(place).path)
        if missing := published.missing():
            raise UserError(f"data: {place} is not complete: {len(missing):,} shards are missing (first: {missing[0]})")
        tables = [shard.table() for shard in published]
    else:
        tables = [pq.read_table(path) for path in sorted(place.rglob("*.parquet"))]
    if not tables:
        raise UserError(f"data: no parquet files under {place}")
    found: dict[str, str] = {}
    for table in tables:
        if field not in table.column_names:
            raise UserError(f"data: {place} has no field {field!r}; it has {', '.join(table.column_names)}")
        status = table.column("status").to_pylist() if "status" in table.column_names else ["ok"] * len(table)
        rows = zip(table.column("key").to_pylist(), table.column(field).to_pylist(), status, strict=True)
        found.update((key, text) for key, text, outcome in rows if outcome == "ok" and text)
    return found


class World:
    """Generated pictures whose caption is known: `path` is sample(seed, index) of a module of recap.worlds."""

    def __init__(self, source: Source, seed: int) -> None:
        module, _, name = source.path.rpartition(".")
        try:
            self._sample = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"data: `path`: {source.path!r} does not import ({error})") from error
        self._size, self._prompts, self._seed = source.samples, source.prompts, seed

    def __len__(self) -> int:
        return self._size

    def example(self, index: int, epoch: int) -> Example:
        made = self._sample(self._seed, index)
        picture, caption = (made[1], made[2]) if isinstance(made, tuple) else (made.image, made.caption)
        prompt = self._prompts[draw(self._seed, "prompt", epoch, index) % len(self._prompts)]
        return Example(f"{index:08d}", [("user", f"{IMAGE}\n{prompt}"), ("assistant", caption)], [picture])

    def image(self, handle: Any) -> Image.Image:
        return handle


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        return decode_rgb(data)
    except BadImage as error:
        raise BadSample(error.reason, f"{name}: {error.detail}") from error
