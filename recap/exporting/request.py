"""The rows that an export is to hold, read and counted shard by shard. All formats of an export start from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hpc.run.published import PublishedShard
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.rows import OtherRun, Selection, rows

_DOWNLOADED = {"url", "sha256"}  # columns from the downloader's metadata


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported. selection, others: see `recap.exporting.rows.rows`. captioner: the model's settings."""

    selection: Selection
    others: dict[str, OtherRun]
    captioner: dict[str, Any]

    def rows(self, shard: PublishedShard, account: Account, captions_alone: bool = False) -> pa.Table:
        """A shard's rows in the selection's wide schema, which are also counted in `account`.

        Args:
            captions_alone: only captions are written, so that the downloader's metadata is read only where the
                condition names a column of it.
        """
        named = {*self.selection.where.columns} if self.selection.where else set()
        same, downloads = SameImages(tells=False), not captions_alone or bool(_DOWNLOADED & named)
        table = rows(shard, self.selection, self.others, same, account.downloads if downloads else None)
        account.add(self.captioner, shard, table)
        account.without_digests |= same.without_digests
        return table
