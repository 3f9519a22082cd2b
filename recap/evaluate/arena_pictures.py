"""The pictures of an arena's page: small, in the page itself, and bounded in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage
from hpc.run.published import Published
from recap.data.headers import plain
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.evaluate.arena_data import Arena, Captioner
from recap.report import Sampled, fetch_images, thumbnail


def pictures(arena: Arena, shown: Sequence[str], given: Sequence[str], most: int) -> dict[str, str]:
    """Data URLs by image, of those that are found, as long as all of them have no more than `most` bytes.

    Args:
        given: tars, folders, tables; without any, the runs that made the captions say where they lie.
    """
    found = _given(arena, shown, given) if given else _of_runs(arena.captioners, shown)
    urls: dict[str, str] = {}
    used = 0
    for image in shown:
        url = thumbnail(found[image]) if image in found else ""
        if url and used + len(url) <= most:
            urls[image] = url
            used += len(url)
    return urls


def _given(arena: Arena, shown: Sequence[str], places: Sequence[str]) -> dict[str, bytes]:
    """Keys alone say which image is which: where several shards hold one, the first is taken if it is of that shard."""
    config = DataConfig(shards=list(places))
    samples = {image: c.samples[image] for c in arena.captioners for image in shown if image in c.samples}
    wanted = {(shard, key): image for image, (shard, key) in samples.items()}
    by_key = {key: image for (_, key), image in wanted.items()}
    repeated = len(by_key) < len(wanted)
    found: dict[str, bytes] = {}
    for shard in list_shards(config):
        if len(found) == len(wanted):
            break
        try:
            for sample in samples_of(shard, config.wanted()):
                if isinstance(sample, Damage):
                    break
                key = plain(sample.key)
                image = wanted.get((shard.id, key)) or (None if repeated else by_key.get(key))
                if image is not None:
                    found.setdefault(image, _bytes(sample.members, config.image))
        except (OSError, ShardError):
            continue
    return {image: data for image, data in found.items() if data}


def _bytes(members: Mapping[str, bytes], endings: Sequence[str]) -> bytes:
    return next((members[ending] for ending in endings if ending in members), b"")


def _of_runs(captioners: Sequence[Captioner], shown: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for captioner in captioners:
        wanted = [image for image in shown if image in captioner.samples and image not in found]
        if not wanted or not (captioner.place / "submissions").is_dir():
            continue
        source = Published(captioner.place)
        data = source.submission.config.get("data", {})
        asked = {}
        for image in wanted:
            shard_id, key = captioner.samples[image]
            shard = source.find(shard_id)
            if shard is not None:
                asked[image] = Sampled(shard, key, None, None, None)
        try:
            fetch_images(list(asked.values()), Wanted(tuple(data.get("image", ())), data.get("key") or ""))
        except UserError:
            continue  # rows of columns: their shards hold no pictures
        found |= {image: sample.image for image, sample in asked.items() if sample.image}
    return found
