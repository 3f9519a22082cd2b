"""Tars of an export: those of the run, each with its captions in it, as a part (`recap.exporting.parts`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc.run.published import PublishedShard
from recap.captioned_tars import safe_name, write_captioned
from recap.data.headers import without_dot_slash
from recap.data.kind import Wanted
from recap.exporting.account import Account
from recap.exporting.asked import Asked
from recap.exporting.parts import Parts


def tar_name(shard: PublishedShard) -> str:
    """Of a shard's tar: its id, with folders."""
    return f"{safe_name(shard.shard.id.replace('%2F', '/'))}.tar"


@dataclass(frozen=True)
class CaptionedTar:
    """A shard's tar, where one of its samples is written: `datasets` refuses a data set that begins with an empty tar.

    wanted: of each sample.
    """

    parts: Parts
    column: str
    wanted: Wanted
    asked: Asked

    def __call__(self, number: int, shard: PublishedShard) -> dict[str, Any]:
        account = Account()
        kept = {
            without_dot_slash(key) for key in self.asked.rows(shard, account, captions_alone=True)["key"].to_pylist()
        }
        path = self.parts.out / tar_name(shard)
        with self.parts.whole(path) as file:
            made, account.left_out = write_captioned(shard, file, f"{self.column}.txt", self.wanted, kept)
        account.each = [made]
        if not made:
            path.unlink()
            self.parts.sync(path)
        return account.as_record()
