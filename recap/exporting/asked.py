"""The rows that an export asks for, read and counted shard by shard: what its parts begin with, of whatever kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hpc.run.published import PublishedShard
from recap.data.same_image import SameImages
from recap.exporting.account import Account
from recap.exporting.rows import Added, Selection, rows

_DOWNLOADED = {"url", "sha256"}


@dataclass(frozen=True)
class Asked:
    """selection, others: see `recap.exporting.rows.rows`. captioner: the settings of what wrote the captions."""

    selection: Selection
    others: dict[str, Added]
    captioner: dict[str, Any]

    def rows(self, shard: PublishedShard, account: Account, captions_alone: bool = False) -> pa.Table:
        """A shard's rows in the selection's wide schema; `account` counts them.

        Args:
            captions_alone: what the downloader knows is not written, and asked for where the condition names it.
        """
        named = {*self.selection.where.columns} if self.selection.where else set()
        same, downloads = SameImages(tells=False), not captions_alone or bool(_DOWNLOADED & named)
        table = rows(shard, self.selection, self.others, same, account.downloads if downloads else None)
        account.add(self.captioner, shard, table)
        account.without_digests |= same.without_digests
        return table
