"""The images of an arena's page, as small data URLs of bounded total size."""

from __future__ import annotations

from collections.abc import Sequence

from hpc.base.errors import UserError
from hpc.run.published import Published
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.thumbnails import data_url, images_of
from recap.evaluate.arena_data import Arena, Captioner


def pictures(arena: Arena, shown: Sequence[str], given: Sequence[str], most: int) -> dict[str, str]:
    """Data URLs by image, for those that are found, until they reach `most` bytes.

    Args:
        shown: images, in the order in which they are shown.
        given: tars, folders or tables with the images; without any, the inputs of the runs that made the captions.
    """
    found = _given(arena, shown, given) if given else _of_runs(arena.captioners, shown)
    urls: dict[str, str] = {}
    used = 0
    for image in shown:
        url = data_url(found[image]) if image in found else ""
        if url and used + len(url) <= most:
            urls[image] = url
            used += len(url)
    return urls


def _given(arena: Arena, shown: Sequence[str], places: Sequence[str]) -> dict[str, bytes]:
    """Image files by name, found by shard and key, or by key alone where no shard has the captions' name and keys are
    unique."""
    config = DataConfig(shards=list(places))
    samples = {image: c.samples[image] for c in arena.captioners for image in shown if image in c.samples}
    known = {(shard, key): image for image, (shard, key) in samples.items()}
    by_key = {key: image for (_, key), image in known.items()}
    found: dict[str, bytes] = {}
    shards = list_shards(config)
    named = {shard.id for shard in shards} & {shard for shard, _ in known}
    for shard in shards:
        wanted = {key: image for (its, key), image in known.items() if its == shard.id}
        if not named and len(by_key) == len(known):
            wanted = {key: image for key, image in by_key.items() if image not in found}
        read = images_of(shard, wanted, config.wanted())
        found |= {wanted[key]: data for key, data in read.items()}
    return found


def _of_runs(captioners: Sequence[Captioner], shown: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for captioner in captioners:
        wanted: dict[str, dict[str, str]] = {}
        for image in shown:
            if image in captioner.samples and image not in found:
                shard_id, key = captioner.samples[image]
                wanted.setdefault(shard_id, {})[key] = image
        if not wanted or not (captioner.place / "submissions").is_dir():
            continue
        source = Published(captioner.place)
        data = source.submission.config.get("data", {})
        images = Wanted(tuple(data.get("image", ())), data.get("key") or "")
        for shard_id, keys in wanted.items():
            shard = source.find(shard_id)
            try:
                read = images_of(shard.shard, keys, images) if shard else {}
            except UserError:
                continue  # a run over rows of columns has no images
            found |= {keys[key]: image for key, image in read.items()}
    return found
