"""Checks, by the sha256 of images, that a column was made from the images that it is joined to.

Columns are joined by shard and key, and img2dataset numbers the samples of every data set alike, so that the captions
of one data set would fit the images of another. Every operator over images therefore writes `image_sha256`, the digest
of the tar member that it read, and every join compares it with the image at hand: for all samples of the first block of
each shard, and for one sample of every other block. Where no tar is read, columns are compared with each other. A
comparison costs the sha256 of an image; `python -m benchmarks.same_image` measures it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from threading import Lock
from typing import TYPE_CHECKING

import pyarrow as pa

from hpc.base.errors import UserError
from recap.randomness import draw

if TYPE_CHECKING:
    from recap.data.column import Values

log = logging.getLogger(__name__)

FIELD = "image_sha256"
"""Field of every column that is made from images: sha256 of the member that was read, null where there was none."""

_ANY_IMAGE = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jp2", "jxl")


def digest(image: bytes | None) -> str | None:
    """The value of `image_sha256` for an image file: its sha256 in hex."""
    return hashlib.sha256(image).hexdigest() if image is not None else None


def digest_field(schema: pa.Schema) -> str | None:
    """The name of the field that holds the images' digests; None where a column's file has none.

    Caption columns that were made before `image_sha256` have them in `sha256`. A field `sha256` of other files may hold
    the digest of something else, so it is never compared.
    """
    if FIELD in schema.names:
        return FIELD
    captions = {"sha256", "caption", "tokens", "finish"} <= set(schema.names)
    return "sha256" if captions and b"identity" in (schema.metadata or {}) else None


class SameImages:
    """Compares the digests of columns, and remembers which shards it has seen. Thread-safe.

    Args:
        images: extensions of the image members.
        tells: whether to log the names of columns that have no digests, once each.
    """

    def __init__(self, images: Sequence[str] = (), tells: bool = True) -> None:
        self.tells = tells
        self._images = (*_ANY_IMAGE, *(e.lower().lstrip(".") for e in images))
        self._met: set[str] = set()
        self.without_digests: set[str] = set()
        self._proven: set[tuple[str, str]] = set()  # (shard, column) with a `doubt` whose digests were equal
        self._lock = Lock()

    def check(
        self,
        shard: str,
        keys: Sequence[str],
        members: Sequence[Mapping[str, bytes]],
        columns: Mapping[str, Values],
    ) -> None:
        """Compare the columns of one block with its samples.

        Args:
            members: of each sample, by extension; empty where the tar is not read.
            columns: the block's values of each column beside the tars.

        Raises:
            UserError: a column was made from another image; shard, key and both digests are named.
        """
        carried = {name: read.digests for name, read in columns.items() if read.digests is not None}
        self.tell(columns.keys() - carried.keys())
        compared: set[str] = set()
        known = [at for at in range(len(keys)) if any(found[at] for found in carried.values())]
        for at in self._chosen(shard, keys, known):
            wanted = {name: value for name, found in carried.items() if (value := found[at])}
            compared = self._compare(f"shard {shard}, sample {keys[at]}", members[at], wanted)
            self._proven |= {(shard, name) for name in compared if columns[name].doubt}
        for name, read in columns.items():
            if read.doubt and (shard, name) not in self._proven and (read.digests is None or any(read.digests)):
                raise UserError(read.doubt)

    def _chosen(self, shard: str, keys: Sequence[str], known: Sequence[int]) -> Sequence[int]:
        """Which samples to compare: all of the first block seen of a shard, one of any other. known: have digests."""
        with self._lock:
            new = shard not in self._met
            if known:
                self._met.add(shard)
        return known if new or not known else [known[draw(0, "same image", shard, keys[0]) % len(known)]]

    def _compare(self, where: str, members: Mapping[str, bytes], wanted: Mapping[str, str]) -> set[str]:
        images = [data for extension, data in members.items() if extension.rpartition(".")[2] in self._images]
        if images:
            own = [digest(data) for data in images]
            for name, value in wanted.items():
                if value not in own and value not in map(digest, members.values()):  # a member of any name may match
                    raise _mismatch(where, f"column {name}", value, "the tar", str(own[0]))
            return set(wanted)
        first = next(iter(wanted), "")
        for name, value in wanted.items():
            if value != wanted[first]:
                raise _mismatch(where, f"column {name}", value, f"column {first}", wanted[first])
        return set(wanted) if len(wanted) > 1 else set()

    def tell(self, without: Set[str]) -> None:
        """Log the names of columns that have no digests, once each."""
        for name in sorted(without - self.without_digests):
            self.without_digests.add(name)
            if self.tells:
                log.warning(
                    "data: column %s carries no %s: that it was made from these images is known by shard and key alone",
                    name, FIELD,
                )  # fmt: skip


def _mismatch(where: str, one: str, its: str, other: str, others: str) -> UserError:
    return UserError(
        f"data: {where}: {one} was made from an image with sha256 {its}, {other} has {others}. Keys of other data sets "
        "are the same: name the column that was made from these tars, or make it again."
    )
