"""An export for Megatron-Energon: tars of captions beside the run's tars. Energon joins the two folders by key, so that
no image is copied.

    OUT/captions/<shard>.tar     a caption each: <key>.recap.txt
    OUT/images/<shard>.tar       links to the run's tars; Energon keeps its index beside them, in .nv-meta
    OUT/metadataset.yaml         joins the two, as crude samples (`join`, below)
"""

from __future__ import annotations

import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from hpc.base.errors import UserError
from hpc.run.published import PublishedShard
from recap.exporting.account import Account
from recap.exporting.parts import Parts
from recap.exporting.request import ExportRequest
from recap.exporting.tars import tar_name
from recap.worlds.tars import write_tar

CAPTIONS, IMAGES, METADATASET = "captions", "images", "metadataset.yaml"


@dataclass(frozen=True)
class Sidecar:
    """Makes one part: a shard's tar of captions, and the link to its tar.

    Raises:
        UserError: the shard is not a plain tar on a file system of this machine. Energon reads no others.
    """

    parts: Parts
    column: str
    request: ExportRequest

    def __call__(self, number: int, shard: PublishedShard) -> dict[str, Any]:
        account = Account()
        table = self.request.rows(shard, account, captions_alone=True)
        if len(table):  # Energon indexes no empty tar
            self._write(shard, table)
        return account.as_record()

    def _write(self, shard: PublishedShard, table: pa.Table) -> None:
        name, uri = tar_name(shard), shard.shard.uri
        if "://" in uri or not uri.endswith(".tar"):
            raise UserError(f"export: {uri}: Energon reads plain tars of a file system. Use --webdataset.")
        link = self.parts.out / IMAGES / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(Path(uri).absolute())
        self.parts.sync(link)
        with self.parts.atomic_file(self.parts.out / CAPTIONS / name) as file:
            pairs = zip(table["key"].to_pylist(), table["re_caption"].to_pylist(), strict=True)
            write_tar(file, ((key, {f"{self.column}.txt": text.encode()}) for key, text in pairs), tarfile.PAX_FORMAT)


def write_metadataset(folder: Path) -> None:
    """Write the file that joins the two folders."""
    (folder / METADATASET).write_text(yaml.safe_dump(_metadataset(), sort_keys=False))


def _metadataset() -> dict[str, Any]:
    parts = {name: {"path": name} for name in (CAPTIONS, IMAGES)}
    joiner = {"__module__": "recap.exporting.energon", "__function__": "join"}
    return {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"join": parts, "joiner": joiner}},
    }


def join(captions: Mapping[str, Any], images: Mapping[str, Any]) -> Any:
    """One sample: the members of the run's tar, and the caption. Energon calls it for each pair."""
    from megatron.energon import CrudeSample

    return CrudeSample({**images, **{name: v for name, v in captions.items() if not name.startswith("__")}})


def commands(out: Path) -> list[str]:
    """The commands that make Energon's indices of both folders, and of their join."""
    index = "energon prepare --non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset"
    place = shlex.quote(str(out))
    return [f"{index} {place}/{CAPTIONS}", f"{index} {place}/{IMAGES}", f"energon prepare {place}/{METADATASET}"]
