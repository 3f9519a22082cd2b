"""Tars with the captions of a run in them: written anew, or joined while webdataset reads the original ones."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpc.base.errors import ShardError
from hpc.operator import OK, Damage
from hpc.run.published import Published, PublishedShard
from recap.data.blocks import BLOCK
from recap.data.column import Values
from recap.data.headers import without_dot_slash
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.same_image import SameImages
from recap.data.tars import Sample
from recap.data.texts import decoded
from recap.worlds.tars import write_tar

_TEXTS = ("txt", "text", "transcript")  # extensions that `datasets` and webdataset decode as UTF-8
_JSON = ("json", "jsn")


class CaptionView:
    """The captions of a run as a stage behind `webdataset.WebDataset(view.urls)`: nothing is copied.

    webdataset's own reader ends at damage: where the tars have some, `view.read` takes its place.

    Args:
        member: name under which a sample gets its caption, bytes as webdataset has them before decoding.
        keep_all: pass samples without a caption on, too.
    """

    def __init__(self, run: str | Path, member: str | None = None, keep_all: bool = False) -> None:
        self._source = Published(run)
        self._wanted = Wanted.everything(self._source.submission.config.get("data") or {})
        self._shards = {shard.shard.uri: shard for shard in self._source}
        self._member = member or f"{self._source.column}.txt"
        self._keep_all = keep_all

    @property
    def urls(self) -> list[str]:
        """The tars of the finished shards; files that gave no sample, such as a web page in place of a tar, are not
        among them.
        """
        return [uri for uri, shard in self._shards.items() if shard.marker["rows"]]

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        url, captions, same, number = "", dict[str, Captioned](), SameImages(), 0
        for sample in samples:
            if sample["__url__"] != url:
                url, number = sample["__url__"], 0
                captions = caption_by_key(self._shards[url])
            captioned = captions.get(without_dot_slash(sample["__key__"]))
            if captioned is not None:
                if number < BLOCK or number % BLOCK == 0:
                    members = {k: v for k, v in sample.items() if isinstance(v, bytes)}
                    captioned.check(same, self._shards[url].shard.id, sample["__key__"], members)
                yield {**sample, self._member: captioned.text.encode()}
            elif self._keep_all:
                yield sample
            number += 1

    def read(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Samples with their captions from shards ({"url": ...}), each read to its last good byte.

        In the place of `webdataset.tarfile_to_samples()` in a DataPipeline.
        """
        for shard in shards:
            found = self._shards[shard["url"]].shard
            try:
                samples = (s for s in samples_of(found, self._wanted) if isinstance(s, Sample) and not s.problems)
                yield from self({"__key__": s.key, "__url__": found.uri, **s.members} for s in samples)
            except (OSError, ShardError):
                continue  # it has moved since


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption, and the digest of the image that it tells of."""

    text: str
    image: str | None

    def check(self, same: SameImages, shard: str, key: str, members: Mapping[str, bytes]) -> None:
        same.check(shard, [key], [members], {"of the captions": Values([], [self.image])})


def caption_by_key(shard: PublishedShard) -> dict[str, Captioned]:
    table = shard.table(["key", "caption", "sha256", "status"])
    rows = zip(*(table[name].to_pylist() for name in ("key", "caption", "sha256", "status")), strict=True)
    return {without_dot_slash(key): Captioned(caption, image) for key, caption, image, status in rows if status == OK}


def write_captioned(
    shard: PublishedShard, file: BinaryIO, member: str, wanted: Wanted, kept: Container[str]
) -> tuple[int, Counter[str]]:
    """Write a tar with every captioned sample of a shard, where there is one: its members, and the caption.

    Args:
        wanted: of each sample. kept: keys of those that are written.

    Returns:
        (samples, members that were left out by reason); no sample where the shard cannot be read any more.
    """
    left_out, made, failed = Counter[str](), Counter[str](), list[Exception]()
    captions = {key: captioned for key, captioned in caption_by_key(shard).items() if key in kept}
    samples = _with_captions(_read(shard, wanted, failed), shard, captions, member, left_out, made)
    write_tar(file, samples, tarfile.PAX_FORMAT)
    left_out.update(f"shard that cannot be read any more ({error})" for error in failed)
    return 0 if failed else made["samples"], left_out


def _read(shard: PublishedShard, wanted: Wanted, failed: list[Exception]) -> Iterator[Sample | Damage]:
    """A shard's samples, until it cannot be read: what is wrong when they are written is another matter."""
    try:
        yield from samples_of(shard.shard, wanted)
    except (OSError, ShardError) as error:
        failed.append(error)


def _with_captions(
    found: Iterable[Sample | Damage],
    shard: PublishedShard,
    captions: dict[str, Captioned],
    member: str,
    left_out: Counter[str],
    made: Counter[str],
) -> Iterator[tuple[str, dict[str, bytes]]]:
    same = SameImages()
    for number, sample in enumerate(found):
        if isinstance(sample, Damage):
            return
        captioned = captions.pop(sample.key, None)  # a key that comes again was not captioned
        if captioned is not None and not sample.problems:
            if number < BLOCK or number % BLOCK == 0:
                captioned.check(same, shard.shard.id, sample.key, sample.members)
            members = {extension: _readable(extension, data) for extension, data in sample.members.items()}
            left_out.update(sample.odd.values())
            left_out.update("damaged JSON" for data in members.values() if data is None)
            made["samples"] += 1
            kept = {extension: data for extension, data in members.items() if data is not None}
            yield safe_name(sample.key), {**kept, member: captioned.text.encode()}


def _readable(extension: str, data: bytes) -> bytes | None:
    """A member as others can decode it: one text that is not UTF-8 makes `datasets` refuse all. None: it cannot be."""
    kind = extension.rpartition(".")[2]
    if kind not in _TEXTS + _JSON:
        return data
    text = decoded(data)[0].encode("utf-8", "replace")
    try:
        if kind in _JSON:
            json.loads(text)
    except (ValueError, RecursionError):
        return None
    return text


def safe_name(name: str) -> str:
    """A path that stays below the folder it is unpacked in; different names stay different.

    >>> safe_name("a/b"), safe_name("../../x"), safe_name("/etc/x")
    ('a/b', '%2E%2E/%2E%2E/x', '%2Fetc/x')
    """
    parts = [part.replace(".", "%2E") if part in (".", "..") else part for part in name.split("/")]
    safe = "/".join(parts)
    return f"%2F{safe[1:]}" if safe.startswith("/") else safe
