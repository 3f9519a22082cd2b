"""The image of each sample of a shard, as all jobs over images read it, and the reason for samples without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from hpc.operator import Damage, Item, Shard
from recap.data.blocks import ShardBlocks
from recap.data.image_bytes import COMMON, CONVERT, NOT_READ, unread_format
from recap.data.images import NOT_AN_IMAGE
from recap.data.inputs import DataConfig
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.noted_blocks import noted
from recap.data.tars import Sample
from recap.data.texts import TextMember

MISSING = "image: missing"
_NAMED = 5  # extensions that a message lists
_NO_IMAGES = ("txt", "json")


@dataclass(frozen=True, slots=True)
class FoundImage:
    """A sample's image, or the reason why it has none that can be used."""

    image: bytes | None
    reason: str = ""
    detail: str = ""


def find_image(sample: Sample, extensions: Sequence[str]) -> FoundImage:
    """The first member with one of the extensions. A sample with a duplicate key has no image, since it is not known
    which of the samples it belongs to."""
    if sample.problems:
        return FoundImage(None, sample.problems[0])
    image = next((sample.members[e] for e in extensions if e in sample.members), None)
    if image is not None:
        return FoundImage(image)
    odd = next((sample.odd[e] for e in extensions if e in sample.odd), None)
    if odd is not None:
        return FoundImage(None, f"image: {odd}")
    return FoundImage(None, *why_missing(sample.members, sample.odd))


def why_missing(members: Mapping[str, bytes], odd: Collection[str] = ()) -> tuple[str, str]:
    """(reason, detail) for a sample without a member that `data.image` names. A member in an image format that is not
    read here gives the same reason as such bytes under another extension.

    Args:
        members, odd: as in recap.data.tars.Sample.
    """
    names = [*members, *odd]
    for name in names:
        kind = NOT_READ.get(name.rpartition(".")[2])
        if kind is None:
            continue
        data = members.get(name, b"")
        if data.startswith(COMMON) and not unread_format(data):
            return MISSING, f"member {name}, which is of a format that is read: name {name} in data.image"
        return NOT_AN_IMAGE, f"{unread_format(data) or kind}, which is not read: {CONVERT} (member {name})"
    return MISSING, _listed("members", names)


def read_items(
    shard: Shard, data: DataConfig, payload: Callable[[Sample], tuple[Any, int]], wanted: Wanted
) -> Iterator[Item | Damage]:
    """The samples of a shard as a job's items, and at the end what is wrong with the shard.

    Args:
        payload: returns an item's payload, and the bytes that it holds in memory.
        wanted: what is read of each sample. Where it includes images, a shard most of whose samples have none counts
            as damaged.
    """
    index, damage, unnamed = 0, None, _ImageCheck(data)
    blocks = ShardBlocks()
    with closing(samples_of(shard, wanted, blocks)) as samples:
        for found in samples:
            if isinstance(found, Damage):
                damage = found  # the last that comes
                continue
            if wanted.image:
                unnamed.see(found)
            yield Item(shard.id, index, found.key, *payload(found), lost=found.failure())
            index += 1
    data.noted = {shard.id: noted(blocks, wanted)}
    said = damage or unnamed.damage(index) or _count(shard, index)
    if said:
        yield said


def _count(shard: Shard, read: int) -> Damage | None:
    if shard.expected is None or read == shard.expected:
        return None
    what = "fewer" if read < shard.expected else "more"
    return Damage(f"tar: {what} samples than expected", f"expected {shard.expected:,}, read {read:,}")


class _ImageCheck:
    """Counts samples that have no image but other members than text and JSON. Many of them show that `data.image` is
    wrong, or that keys have dots in them."""

    def __init__(self, data: DataConfig) -> None:
        self._images, self._others = data.image, {*_NO_IMAGES, TextMember.named(data.text).member}
        self._samples, self._extensions = 0, Counter[str]()

    def see(self, sample: Sample) -> None:
        if any(sample.has(extension) for extension in self._images):
            return
        found = [e for e in [*sample.members, *sample.odd] if e.rpartition(".")[2] not in self._others]
        self._samples += bool(found)
        if len(self._extensions) < 1000:
            self._extensions.update(found[:1000])

    def damage(self, read: int) -> Damage | None:
        """The damage, None where at most half of the samples are such. read: how many samples there were."""
        if 2 * self._samples <= read:
            return None
        told = _listed("their extensions are", [e for e, _ in self._extensions.most_common()])
        kinds = sorted({NOT_READ[e] for e in (name.rpartition(".")[2] for name in self._extensions) if e in NOT_READ})
        unread = f" {', '.join(kinds)}: not read, {CONVERT}." if kinds else ""
        detail = f"{self._samples:,} of {read:,}; {told}.{unread} A key ends at the first dot; extensions: data.image"
        return Damage("image: most samples have none that data.image names", detail)


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{what} {', '.join(name[:40] for name in names[:_NAMED])}{more}"
