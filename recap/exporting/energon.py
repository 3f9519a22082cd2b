"""Captions beside the tars for Megatron-Energon, which joins two folders of tars by key: no image is copied.

OUT/captions/<shard>.tar     <key>.recap.txt, a caption each
OUT/images/<shard>.tar       links to the run's tars; Energon keeps its index beside them, in .nv-meta
OUT/metadataset.yaml         the two joined, as crude samples (`join`, below)
"""

from __future__ import annotations

import shlex
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpc.base.errors import UserError
from hpc.run.published import Published, PublishedShard
from recap.captioned_tars import safe_name
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.rows import Added, Selection, rows
from recap.worlds.tars import write_tar

CAPTIONS, IMAGES, METADATASET = "captions", "images", "metadataset.yaml"


def write_sidecars(
    source: Published,
    shards: Iterable[PublishedShard],
    making: Path,
    others: dict[str, Added],
    selection: Selection,
) -> Account:
    """Write tars of captions, links, and metadataset.yaml into a folder.

    Raises:
        UserError: a shard is not a plain tar on a file system of this machine: Energon reads no others.
    """
    account, same = Account(), SameImages()
    captioner = source.submission.config.get("captioner", {})
    for shard in shards:
        table = rows(shard, selection, others, same, None)
        account.add(captioner, shard, table)
        name = f"{safe_name(shard.shard.id.replace('%2F', '/'))}.tar"
        if not len(table):
            continue  # Energon indexes no empty tar
        uri = shard.shard.uri
        if "://" in uri or not uri.endswith(".tar"):
            raise UserError(f"export: {uri}: Energon reads plain tars of a file system. Use --webdataset.")
        for folder in (CAPTIONS, IMAGES):
            (making / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (making / IMAGES / name).symlink_to(Path(uri).absolute())
        with (making / CAPTIONS / name).open("wb") as file:
            pairs = zip(table["key"].to_pylist(), table["re_caption"].to_pylist(), strict=True)
            write_tar(file, ((key, {f"{source.column}.txt": text.encode()}) for key, text in pairs), tarfile.PAX_FORMAT)
    (making / METADATASET).write_text(yaml.safe_dump(_metadataset(), sort_keys=False))
    return account


def _metadataset() -> dict[str, Any]:
    parts = {name: {"path": name} for name in (CAPTIONS, IMAGES)}
    joiner = {"__module__": "recap.exporting.energon", "__function__": "join"}
    return {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"join": parts, "joiner": joiner}},
    }


def join(captions: Mapping[str, Any], images: Mapping[str, Any]) -> Any:
    """One sample of both: the members of the run's tar, and the caption. Asked for by Energon."""
    from megatron.energon import CrudeSample

    return CrudeSample({**images, **{name: v for name, v in captions.items() if not name.startswith("__")}})


def commands(out: Path) -> list[str]:
    """What makes the folder readable: Energon's own indices, and the join's."""
    index = "energon prepare --non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset"
    place = shlex.quote(str(out))
    return [f"{index} {place}/{CAPTIONS}", f"{index} {place}/{IMAGES}", f"energon prepare {place}/{METADATASET}"]
