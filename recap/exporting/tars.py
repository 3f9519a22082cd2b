"""The tars of an export: copies of the run's tars with captions in them. Each is a part (`recap.exporting.parts`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc.run.published import PublishedShard
from recap.captioned_tars import safe_name, write_captioned
from recap.data.headers import without_dot_slash
from recap.data.kind import Wanted
from recap.exporting.account import Account
from recap.exporting.parts import Parts
from recap.exporting.request import ExportRequest


def tar_name(shard: PublishedShard) -> str:
    """The path of a shard's tar in the export: the shard's id, with folders."""
    return f"{safe_name(shard.shard.id.replace('%2F', '/'))}.tar"


@dataclass(frozen=True)
class CaptionedTar:
    """Makes one part: a shard's tar with its captions. Tars without any sample are left out, since `datasets` refuses a
    data set that begins with an empty tar. wanted: what is copied of each sample."""

    parts: Parts
    column: str
    wanted: Wanted
    request: ExportRequest

    def __call__(self, number: int, shard: PublishedShard) -> dict[str, Any]:
        account = Account()
        kept = {
            without_dot_slash(key) for key in self.request.rows(shard, account, captions_alone=True)["key"].to_pylist()
        }
        path = self.parts.out / tar_name(shard)
        with self.parts.atomic_file(path) as file:
            made, account.left_out = write_captioned(shard, file, f"{self.column}.txt", self.wanted, kept)
        account.each = [made]
        if not made:
            path.unlink()
            self.parts.sync(path)
        return account.as_record()
