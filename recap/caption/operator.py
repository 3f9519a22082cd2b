"""The captioning operator: webdataset tars in, one column of captions out. Torch-free until `setup`.

It is the simple case of `recap.generate`: the model always sees the image, and a prompt may contain one column,
`{alt}`, the text member of the tars.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hpc.base.fields import semantic
from hpc.operator import Column, Damage, Item, Shard
from recap.data.block_items import IndexedDataConfig, block_counts, read_blocks
from recap.data.image_version import VERSION_2
from recap.data.inputs import list_shards, placeholder_digests
from recap.data.pictures import find_image, read_items
from recap.data.tar_job import PlannedInput
from recap.data.tars import READING_2, Sample
from recap.data.texts import LONGEST_TEXT, TextMember, check_key
from recap.engine import CaptionerConfig
from recap.engine.identity import captioner_identity
from recap.engine.processor_files import settle
from recap.generate.engine_job import FIELDS, EngineJob, RowInput


@dataclass
class CaptionConfig:
    """Config keys of a captioning job."""

    column: str = semantic("recap", "name of the column that is made")
    data: IndexedDataConfig = field(default_factory=IndexedDataConfig)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        settle(self.captioner, self.captioner.sees)


class CaptionOperator(PlannedInput, EngineJob):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = CaptionConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {
        2: f"{VERSION_2}; {READING_2}; backend=transformers gives models other than LLaVA no second BOS"
    }

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        super().__init__(config.captioner, "captioner", placeholder_digests(config.data))
        self._text = TextMember.named(config.data.text)
        self._wanted = config.data.wanted([self._text.member])
        self._input = ""

    # --- what a login node asks ---------------------------------------------------------------

    def plan(self) -> list[Shard]:
        shards = list_shards(self.config.data)
        self._input = self.config.data.described(shards, self._wanted)
        check_key("data.text", self._text, shards)
        return shards

    def identity(self) -> dict[str, Any]:
        self.check_model()
        try:
            return captioner_identity(self.config.captioner) | self.placeholders_digest()
        except FileNotFoundError as error:
            raise self.config_error(error) from error

    def describe(self) -> list[tuple[str, str]]:
        lines = [("input", self._input), *super().describe()]
        if self.config.data.expected == "auto" and any("://" in pattern for pattern in self.config.data.shards):
            lines.append(("", "samples are not counted beforehand on remote stores (data.expected=stats does)"))
        return lines

    def column(self) -> Column:
        return Column(self.config.column, FIELDS)

    # --- what an engine process asks ----------------------------------------------------------

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return read_items(shard, self.config.data, self._row_input, self._wanted)

    def block_counts(self, shards: Sequence[Shard]) -> dict[str, list[int]]:
        return block_counts(self.config.data, shards)

    def read_blocks(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Item]:
        return read_blocks(shard, numbers, self.config.data, self._row_input, self._wanted)

    def _row_input(self, sample: Sample) -> tuple[RowInput, int]:
        found = find_image(sample, self.config.data.image)
        text, note = self._text.read(sample.members, sample.odd, LONGEST_TEXT)
        if found.image is None:
            return RowInput(b"", None, text, reason=found.reason, detail=found.detail), 0
        digest = hashlib.sha256(found.image).hexdigest()
        return RowInput(found.image, digest, text, note, texts={"alt": text or ""}), len(found.image)
