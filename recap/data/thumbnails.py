"""Small images for HTML pages, of samples in shards of any kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping

from hpc.base.errors import ShardError
from hpc.operator import Damage, Shard
from recap.data.images import BadImage, decode_rgb
from recap.data.kind import Wanted
from recap.data.kinds import samples_of

SIDE = 224  # pixels on a page; images have twice as many, for screens of high resolution


def data_url(data: bytes) -> str:
    """A small copy of an image as a data: URL; "" where it cannot be decoded."""
    try:
        image = decode_rgb(data)
    except BadImage:
        return ""
    image.thumbnail((2 * SIDE, 2 * SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def images_of(shard: Shard, keys: Collection[str], images: Wanted) -> Mapping[str, bytes]:
    """The images of some of a shard's samples, by key.

    The shard is read up to the last of them, or to where it is damaged. A shard that is gone gives none.
    """
    left, found = set(keys), dict[str, bytes]()
    try:
        for sample in samples_of(shard, images) if left else ():
            if isinstance(sample, Damage):
                break
            if sample.key in left:
                left.remove(sample.key)
                found[sample.key] = next((sample.members[e] for e in images.image if e in sample.members), b"")
            if not left:
                break
    except (OSError, ShardError):
        pass
    return {key: data for key, data in found.items() if data}
