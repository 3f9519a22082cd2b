"""Reads the images to evaluate, one after another: from a sampling run's column, tars, or a plain folder.

    run       its column has the fields key, image (an image file), prompt, guidance and status
    tars      a folder, a pattern or URLs; the prompt is the member txt, and json may have guidance and cut
    folder    image files, and metadata.jsonl with file_name and prompt (or text), as datasets' imagefolder reads it

Prompts may be missing where only images are needed, as in a reference set.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base import object_store
from hpc.base.errors import UserError
from hpc.operator import OK, Damage
from hpc.run.directory import Run
from hpc.run.published import Published, PublishedShard
from recap.data.images import BadImage, decode_rgb
from recap.data.inputs import DataConfig, list_shards
from recap.data.kinds import samples_of

METADATA = "metadata.jsonl"
log = logging.getLogger(__name__)

_ROWS = 64  # rows of a column that are held in memory at a time


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image file.

    key: unique in its set. name: where it lies, for messages. data: the file's bytes.
    guidance: guidance value of its sampling, None where that is not known.
    cut: whether its prompt was longer than the context of the model that drew it, None where that is not known.
    """

    key: str
    name: str
    data: bytes
    prompt: str | None = None
    guidance: float | None = None
    cut: bool | None = None


@dataclass
class ImageSet:
    """Images that can be iterated over several times. total: how many there are, None where that is not known
    beforehand.

    left_out and damaged count during an iteration: samples without a readable image, by guidance and reason, and
    damaged tars, whose images before the damage are yielded.
    """

    path: str
    total: int | None = None
    left_out: Counter[tuple[float | None, str]] = field(default_factory=Counter)
    damaged: int = 0

    def __iter__(self) -> Iterator[ImageItem]:
        self.left_out.clear()
        self.damaged = 0
        empty = True
        for item in self._read():
            empty = False
            yield item
        if empty:
            known = [*self.reasons(), *["the tars are damaged"] * bool(self.damaged)]
            why = f" ({known[0]})" if known else ""
            raise UserError(f"evaluate: {self.path} holds no image{why}.")

    def reasons(self) -> dict[str, int]:
        """Why samples are left out, most frequent first."""
        found: Counter[str] = Counter()
        for (_, why), count in self.left_out.items():
            found[why] += count
        return dict(found.most_common())

    def _read(self) -> Iterator[ImageItem]:
        raise NotImplementedError


class Unread:
    """Sorts out images that cannot be decoded. counts: by guidance and reason. first: name and reason of the first
    one."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[float | None, str]] = Counter()
        self.first = ""

    def readable(self, items: Sequence[ImageItem]) -> list[ImageItem]:
        with ThreadPoolExecutor(4) as pool:
            reasons = list(pool.map(_problem, items))
        for item, why in zip(items, reasons, strict=True):
            if why:
                self.counts[item.guidance, why] += 1
                self.first = self.first or f"{item.name}: {why}"
        return [item for item, why in zip(items, reasons, strict=True) if not why]


def _problem(item: ImageItem) -> str:
    try:
        decode_rgb(item.data)
    except BadImage as error:
        return error.reason
    return ""


def open_images(path: str, *, partial: bool = False) -> ImageSet:
    """The images at a path, whatever its form.

    Args:
        partial: accept a run whose shards are not all finished.

    Raises:
        UserError: there are no images, the run is not finished, or prompts do not fit the files.
    """
    if Run(path).is_run():
        return RunImages(path, partial)
    folder = Path(path)
    extensions = DataConfig().image
    if folder.is_dir():
        seen = (f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))  # macOS writes ._1.png
        files = sorted(f for f in seen if f.suffix.lower().lstrip(".") in extensions)
        if files or (folder / METADATA).is_file():
            return FolderImages(path, files)
    return TarImages(path)


class RunImages(ImageSet):
    """The image column of a sampling run."""

    def __init__(self, path: str, partial: bool) -> None:
        published = Published(path)
        if (missing := published.missing()) and not partial:
            raise UserError(
                f"evaluate: {path}: {len(missing):,} of {len(published.shards):,} shards are not finished (first: "
                f"{missing[0]}). Launch it again to finish it, or say --partial to evaluate what is there."
            )
        self._shards = list(published)
        super().__init__(path, sum(shard.marker["rows"] for shard in self._shards))

    def _read(self) -> Iterator[ImageItem]:
        for shard in self._shards:
            with object_store.fetched(shard.location) as file:
                yield from self._rows(shard, pq.ParquetFile(file))

    def _rows(self, shard: PublishedShard, file: pq.ParquetFile) -> Iterator[ImageItem]:
        names = file.schema_arrow.names
        if "image" not in names or not pa.types.is_binary(file.schema_arrow.field("image").type):
            raise UserError(
                f"evaluate: {self.path}: its column has no binary field `image` (it has {', '.join(names)}). "
                "Name a run that sampled images."
            )
        wanted = [n for n in ("key", "image", "prompt", "guidance", "cut", "status", "reason") if n in names]
        for batch in file.iter_batches(_ROWS, columns=wanted):
            for row in batch.to_pylist():
                if row["status"] != OK or row["image"] is None:
                    self.left_out[row.get("guidance"), row.get("reason") or row["status"]] += 1
                    continue
                key = f"{shard.shard.id}/{row['key']}"
                about = {name: row.get(name) for name in ("prompt", "guidance", "cut")}
                yield ImageItem(key, f"{self.path}: {key}", row["image"], **about)


class TarImages(ImageSet):
    """The images of webdataset tars; of a damaged tar those before the damage."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._config = DataConfig(shards=[path], expected="none")
        self._shards = list_shards(self._config)
        self._told: set[str] = set()  # damaged tars that were logged

    def _read(self) -> Iterator[ImageItem]:
        for shard in self._shards:
            for sample in samples_of(shard, self._config.wanted([self._config.text, "json"])):
                if isinstance(sample, Damage):
                    self.damaged += 1
                    if shard.id not in self._told:
                        log.warning("evaluate: %s is damaged: %s: %s", shard.uri, sample.reason, sample.detail)
                    self._told.add(shard.id)
                    continue
                image = next((sample.members[e] for e in self._config.image if e in sample.members), None)
                if image is None:
                    self.left_out[_sampling(sample.members).get("guidance"), "no image"] += 1
                    continue
                text = sample.members.get(self._config.text)
                prompt = None if text is None else text.decode("utf-8", "replace").strip()
                name = f"{shard.uri}: {sample.key}"
                yield ImageItem(f"{shard.id}/{sample.key}", name, image, prompt, **_sampling(sample.members))


def _sampling(members: Mapping[str, bytes]) -> dict[str, Any]:
    """guidance and cut from a sample's json, if recap.dit.write_images wrote it; {} for other json members."""
    try:
        about = json.loads(members.get("json", b"{}"))
        guidance, cut = about.get("guidance"), about.get("cut")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {
        "guidance": float(guidance) if isinstance(guidance, (int, float)) else None,
        "cut": cut if isinstance(cut, bool) else None,
    }


class FolderImages(ImageSet):
    """Image files, with or without prompts."""

    def __init__(self, path: str, files: list[Path]) -> None:
        super().__init__(path, len(files))
        self._files = files
        metadata = Path(path) / METADATA
        self._prompts = _read_prompts(metadata) if metadata.is_file() else {}
        if self._prompts:
            _compare(metadata, set(self._prompts), {file.name for file in files})

    def _read(self) -> Iterator[ImageItem]:
        for file in self._files:
            yield ImageItem(file.name, str(file), file.read_bytes(), self._prompts.get(file.name))


def _read_prompts(metadata: Path) -> dict[str, str]:
    """Prompts by file name."""
    prompts = {}
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompts[row["file_name"]] = row["prompt"] if "prompt" in row else row["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'evaluate: {metadata}, line {number}: write {{"file_name": "0001.png", "prompt": "a red car"}}.'
            ) from error
    return prompts


def _compare(metadata: Path, named: set[str], there: set[str]) -> None:
    if odd := sorted(named ^ there):
        what = "names a file that is not there" if odd[0] in named else "has no line for the file"
        raise UserError(
            f"evaluate: {metadata} {what}: {odd[0]} ({len(odd):,} such; {len(named):,} lines, {len(there):,} images)."
        )
