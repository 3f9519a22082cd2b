"""Tars of an export: those of the run, each with its captions in it, as a part (`recap.exporting.parts`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.run.published import PublishedShard
from recap.captioned_tars import safe_name, write_captioned
from recap.data.headers import plain
from recap.data.kind import Wanted
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.parts import whole
from recap.exporting.rows import Added, Selection, rows


def tar_name(shard: PublishedShard) -> str:
    """Of a shard's tar: its id, with folders."""
    return f"{safe_name(shard.shard.id.replace('%2F', '/'))}.tar"


@dataclass(frozen=True)
class CaptionedTar:
    """A shard's tar, where one of its samples is written: `datasets` refuses a data set that begins with an empty tar.

    wanted: of each sample.
    """

    out: Path
    column: str
    wanted: Wanted
    selection: Selection
    others: dict[str, Added]
    captioner: dict[str, Any]

    def __call__(self, number: int, shard: PublishedShard) -> dict[str, Any]:
        account, same = Account(), SameImages(tells=False)
        asked = self.selection.where is not None and {"url", "sha256"} & {*self.selection.where.columns}
        table = rows(shard, self.selection, self.others, same, account.downloads if asked else None)
        account.add(self.captioner, shard, table)
        account.without_digests |= same.without_digests
        kept = {plain(key) for key in table["key"].to_pylist()}
        path = self.out / tar_name(shard)
        with whole(path) as file:
            made, account.left_out = write_captioned(shard, file, f"{self.column}.txt", self.wanted, kept)
        account.each = [made]
        if not made:
            path.unlink()
        return account.as_record()
