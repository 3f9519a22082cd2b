"""A map job that encodes texts once, and writes a column of a text encoder's states.

    python -m hpc.launch configs/data/text_embeddings.yaml data.shards=[...] text=re_caption \
        data.columns.re_caption.run=runs/recap text_encoder=models/clip-vit-large-patch14

Check the size first (--dry-run prints it): CLIP-L's 77 states of 768 numbers take 118 kB a caption in fp16, which is
118 TB for a billion captions, while latents take 8 TB. Stored states pay for few images and many epochs, or for a large
T5; otherwise trainers encode texts during the training. States are of whole texts, so that sub-captions cannot be used.
As in a training, the last bit of a state may depend on the other texts of its batch.
Torch-free until `setup`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import SKIPPED, Batched, Damage, Item, Row, Shard
from hpc.operator import Column as MadeColumn
from recap.data.columns import RunColumn
from recap.data.rows import JoinedRow, Rows, RowsConfig
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import RowsJob
from recap.data.tars import READING_2
from recap.dit.encoder_files import text_encoder_digest, tokenizer_digest
from recap.dit.storage import total_size_in_words
from recap.dit.tensor_blob import fits_fp16, pack, unpack
from recap.model_files import file_digest

if TYPE_CHECKING:
    from recap.dit.text_encoder import TextEncoder

PRECISIONS = ("fp32", "bf16")

_AT_ONCE = 64  # texts of a forward pass


@dataclass
class TextEmbeddingsConfig:
    """Config keys of a job that makes text embeddings."""

    column: str = semantic("embeddings", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    text: str = semantic("", "which of data.columns is embedded")
    text_encoder: str = execution("", "folder of a CLIP or a T5 that transformers loads")
    context: int = semantic(77, "tokens of a text at most; longer ones are cut")
    precision: str = semantic("fp32", "of the encoder: fp32 | bf16 (GPUs); states are stored in fp16")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        if self.text_encoder and Path(self.text_encoder).is_dir():
            self.text_encoder = os.path.abspath(self.text_encoder)


@dataclass(frozen=True, slots=True)
class Text:
    """An item's payload: a text, and the sha256 of its image, where that is known."""

    text: Any
    image: str | None


class TextEmbeddingsOperator(RowsJob, Batched):
    """Writes the states of one text for each sample, without padding. See hpc.operator.Operator."""

    Config: ClassVar[type] = TextEmbeddingsConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: READING_2}
    batch_size = 4 * _AT_ONCE

    def __init__(self, config: TextEmbeddingsConfig) -> None:
        super().__init__()
        self.config = config
        if config.precision not in PRECISIONS:
            raise UserError(f"config: `precision`: {config.precision!r} is unknown. Write {' or '.join(PRECISIONS)}.")
        if config.context < 1:
            raise UserError(f"config: `context`: {config.context} tokens. Write at least 1 (CLIP has 77).")
        self._shards: list[Shard] = []
        self._encoder: TextEncoder | None = None
        self._digest = self._tokenizer = ""

    # --- what a login node asks -------------------------------------------------------------

    def plan(self) -> list[Shard]:
        self._shards = super().plan()
        return self._shards

    def identity(self) -> dict[str, Any]:
        made: dict[str, Any] = {"text_encoder": encoder_files(self.config.text_encoder)}
        if isinstance(texts := self._rows.columns[self.config.text], RunColumn):
            made["texts"] = texts.known_identity()
        return made

    def describe(self) -> list[tuple[str, str]]:
        config, width = self.config, encoder_width(self.config.text_encoder)
        size = config.context * width * 2
        total = total_size_in_words(size, "captions", self._shards)
        return [
            (
                "states",
                f"column {config.text} · {config.text_encoder} · {config.precision} · {config.context} tokens",
            ),
            ("", f"{config.context} x {width} in fp16: at most {size / 1000:,.1f} kB a caption, {total}"),
            ("", "(states are trimmed to a text's own tokens: half the tokens, half the size)"),
        ]

    def column(self) -> MadeColumn:
        return MadeColumn(self.config.column, [("states", pa.binary()), (FIELD, pa.string())])

    def preflight(self) -> list[str]:
        """Problems with reading the encoder's files on this node."""
        try:
            for path in _files(self.config.text_encoder):
                with path.open("rb") as file:
                    file.read(1)
        except (OSError, UserError) as error:
            return [f"model: {error}"]
        return []

    @cached_property
    def _rows(self) -> Rows:
        columns, name = self.config.data.columns, self.config.text
        if name not in columns:
            raise UserError(
                f"config: `text`: {name!r} is not among data.columns ({', '.join(columns) or 'there are none'}). Write "
                "text=NAME data.columns.NAME.run=RUN (or .folder=, .member=txt)."
            )
        return Rows(self.config.data, [name], image=False)

    # --- what an engine process asks --------------------------------------------------------

    def setup(self, device: str) -> None:
        import torch

        from recap.dit.text_encoder import TextEncoder

        precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.config.precision]
        self._encoder = TextEncoder(self.config.text_encoder, self.config.context).to(device, precision)
        self._digest = text_encoder_digest(self.config.text_encoder)
        self._tokenizer = tokenizer_digest(self.config.text_encoder)

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return self._rows.read(shard, self._text)

    def _text(self, row: JoinedRow) -> tuple[Text, int]:
        members = row.sample.members if row.sample is not None else {}
        image = next((members[e] for e in self.config.data.image if e in members), None)
        return Text(row.columns[self.config.text], row.image if row.sample is None else digest(image)), 0

    def apply(self, items: list[Item]) -> list[Row]:
        texts = [item for item in items if _has_words(item.payload.text)]
        rows = [self._skipped(item, "text: missing") for item in items if not _has_words(item.payload.text)]
        texts.sort(key=lambda item: len(item.payload.text))  # texts of similar length need little padding
        for start in range(0, len(texts), _AT_ONCE):
            rows += self._encoded(texts[start : start + _AT_ONCE])
        return rows

    def _encoded(self, items: list[Item]) -> list[Row]:
        assert self._encoder is not None, "setup() comes first"
        states, mask = self._encoder.encode([item.payload.text for item in items])
        found = zip(items, states.float().cpu().numpy(), mask.cpu().numpy(), strict=True)
        return [self._row(item, state[own]) for item, state, own in found]

    def _row(self, item: Item, states: np.ndarray) -> Row:
        if not fits_fp16(states):
            return self._skipped(item, "embedding: NaN, or too large for fp16")
        about = {
            "encoder": self._digest, "precision": self.config.precision, "context": str(self.config.context),
            "tokenizer": self._tokenizer,
        }  # fmt: skip
        blob = pack("states", states.astype(np.float16), about)
        return Row(item.shard, item.index, item.key, values={"states": blob, FIELD: item.payload.image})

    @staticmethod
    def _skipped(item: Item, reason: str) -> Row:
        return Row(item.shard, item.index, item.key, SKIPPED, reason, values={FIELD: item.payload.image})


def read_states(blob: bytes) -> tuple[np.ndarray, dict[str, str]]:
    """A value of the column: (float16 [tokens, width], facts). The facts are encoder and tokenizer (digests), precision
    and context (tokens at which texts were cut); columns of older versions lack the last two.

    Raises:
        UserError: the value is not an embedding.
    """
    return unpack(blob, "states")


def encoder_files(folder: str) -> dict[str, str]:
    """sha256 by name of a text encoder's config, weights and tokenizer. UserError where there is none."""
    return {str(path.relative_to(folder)): file_digest(path) for path in _files(folder)}


def _files(folder: str) -> list[Path]:
    parts = [Path(folder) / name for name in ("text_encoder", "tokenizer")]
    names = ("config.json", "tokenizer.json", "spiece.model", "*.safetensors")
    places = [part for part in parts if part.is_dir()] or [Path(folder)]
    found = sorted({path for place in places for name in names for path in place.glob(name)})
    if not folder or not any(path.suffix == ".safetensors" for path in found):
        raise UserError(
            f"config: `text_encoder`: {folder or 'empty'} is not the folder of a text encoder: config.json, "
            "*.safetensors and a tokenizer, as transformers writes them, are expected there."
        )
    return found


def _has_words(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


def encoder_width(folder: str) -> int:
    """The width of a state, from config.json: CLIP's hidden_size, T5's d_model."""
    config = json.loads(next(path for path in _files(folder) if path.name == "config.json").read_text())
    config = config.get("text_config", config)
    return int(config.get("hidden_size") or config["d_model"])
