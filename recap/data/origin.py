"""Finds, for a reader's shard, the shard of a column's run that is the same tar.

Shard ids depend on what else a launch named, so that the same tar may have different ids in two runs; shards are
matched by their uri. Readers keep their own ids, since the order of samples and checkpoints depend on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from hpc.base.errors import UserError
from hpc.operator import MissingShards, Shard
from recap.data.addresses import without_credentials


@dataclass(frozen=True, slots=True)
class Origin:
    """The shard of a column's run that a reader's shard was matched with.

    doubt: why it may be another tar, where only id and size are the same, else "". The images must then be compared.
    """

    shard: Shard
    doubt: str = ""


class Places:
    """Normalises uris: credentials are removed and links resolved, for each folder once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def normalised(self, uri: str) -> str:
        uri = without_credentials(uri)
        parts = urlsplit(uri)
        if parts.scheme == "file":
            uri = unquote(parts.path)
        elif "://" in uri:
            return uri.replace(f"{parts.scheme}://{parts.netloc}", f"{parts.scheme}://{parts.netloc.lower()}", 1)
        if os.path.islink(uri):
            return os.path.realpath(uri)
        folder, base = os.path.split(uri)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], base)


class Origins:
    """Matches shards with those of one run.

    Args:
        name: the column's name, for messages.
        run: the run's name, for messages.
        shards: the shards that the run planned.
    """

    def __init__(self, name: str, run: str, shards: Sequence[Shard]) -> None:
        self._name, self._run = name, run
        self._ids = {shard.id: shard for shard in shards}
        self._uris = {shard.uri: shard for shard in shards}
        self._places = Places()
        self._resolved: dict[str, Shard] | None = None

    def find(self, shard: Shard) -> Origin | None:
        """The run's shard that is the same tar as the reader's `shard`; None where it has none.

        Raises:
            UserError: the tar changed since the run planned it, or another tar has its id.
        """
        same = self._ids.get(shard.id)
        if same is not None and (same.uri, same.bytes, same.etag) == (shard.uri, shard.bytes, shard.etag):
            return Origin(same)  # nearly always
        found = same if same and same.uri == shard.uri else self._uris.get(shard.uri) or self._by_place(shard)
        if found is None:
            return self._by_id(shard, same) if same else None
        for what, then, now in (("bytes", found.bytes, shard.bytes), ("version", found.etag, shard.etag)):
            if then and now and then != now and then != MissingShards.ETAG:
                raise UserError(
                    f"data: column {self._name}: {shard.uri} changed since {self._run} read it ({what}: {then} then, "
                    f"{now} now). Launch that run again with --supersede, or name another column."
                )
        return Origin(found)

    def _by_place(self, shard: Shard) -> Shard | None:
        if self._resolved is None:  # several threads may compute it; they get the same
            self._resolved = {self._places.normalised(s.uri): s for s in self._ids.values()}
        return self._resolved.get(self._places.normalised(shard.uri))

    def _by_id(self, shard: Shard, same: Shard) -> Origin:
        doubt = (
            f"data: column {self._name}: shard {shard.id} is {same.uri} for {self._run}, and {shard.uri} here, and "
            "nothing proves that these are the same images. If the tars were moved, launch that run again with "
            "data.shards at their new place; else name the column that was made from these tars."
        )
        if not (shard.bytes and same.bytes == shard.bytes):
            raise UserError(doubt)
        return Origin(same, doubt)


def describe_mapping(name: str, pairs: Sequence[tuple[Shard, Origin]]) -> str:
    """How shards were matched, in words; "" where all have the same id and uri. pairs: (the reader's, the run's)."""
    renamed = [(ours.id, origin.shard.id) for ours, origin in pairs if ours.id != origin.shard.id]
    moved = [ours for ours, origin in pairs if origin.doubt]
    told = []
    if renamed:
        here, there = renamed[0]
        told.append(f"{len(renamed):,} of {len(pairs):,} shards by their uri (here {here}, there {there})")
    if moved:
        told.append(f"{len(moved):,} of {len(pairs):,} by id and size, their first images are compared")
    return f"column {name}: found {'; '.join(told)}" if told else ""
