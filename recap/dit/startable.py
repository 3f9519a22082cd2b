"""Checks at launch, by small files, that a DiT training can start. No weights are read. Torch-free. recap.dit.settings
checks the config itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.run.published import Published
from recap.data.column import ColumnConfig
from recap.dit.encoder_files import check_encoder
from recap.dit.settings import DitConfig, DitModelConfig
from recap.dit.stored import Stored
from recap.dit.text_embeddings import encoder_width
from recap.dit.vae import vae_facts


def check(config: DitConfig) -> None:
    """UserError for the first problem: what is wrong, where, and what to do."""
    model = config.model
    check_encoder(model.text_encoder, model.context)
    width = encoder_width(model.text_encoder)
    if model.start:
        facts = vae_facts(model.vae) if model.vae else None
        channels, factor = (facts.channels, facts.factor) if facts else (3, 1)
        check_start(model, start_config(model), channels, model.image // factor, width)
    _check_stored(config)


def start_config(model: DitModelConfig) -> dict[str, object]:
    """The content of model.start's config.json. UserError where there is none."""
    try:
        return json.loads((Path(model.start) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"config: `model.start`: {model.start} is not the folder of a PixArtTransformer2DModel: its config.json "
            f"cannot be read ({error})."
        ) from error


def check_start(model: DitModelConfig, found: dict[str, object], channels: int, side: int, text_width: int) -> None:
    """UserError unless the weights to start from have the shape that the config describes.

    Args:
        found: config of the weights. channels, side: of the latents. text_width: of the text encoder's states.
    """
    shape = model.shape
    wanted = {
        "in_channels": channels, "sample_size": side, "caption_channels": text_width, "patch_size": shape.patch,
        "out_channels": channels * (2 if model.learned_sigma else 1), "num_layers": shape.layers,
        "num_attention_heads": shape.heads, "attention_head_dim": shape.width // shape.heads,
    }  # fmt: skip
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"config: `model.start`: {model.start} has {key} {found.get(key)}, this config makes {value}."
            )


def _check_stored(config: DitConfig) -> None:
    """UserError unless the first stored latent and embeddings of each column are those that this training would
    compute."""
    stored, data = Stored(config), config.data
    if data.latents and (blob := _first("data.latents", data.columns[data.latents], "latent")):
        stored.latent(blob, f"config: `data.latents`: column {data.latents}")
    for name in data.embeddings.values():
        if blob := _first("data.embeddings", data.columns[name], "states"):
            stored.states(blob, f"config: `data.embeddings`: column {name}")


def _first(key: str, column: ColumnConfig, field: str) -> bytes | None:
    """The first stored value of a column; None where its first file on a disk has none, which the first batch
    reports."""
    if column.run:
        file = next((shard.file for shard in Published(column.run) if shard.file.exists()), None)
    else:
        file = next(iter(sorted(Path(column.folder).glob("*.parquet"))), None) if column.folder else None
    if file is None:
        return None
    stored = pq.ParquetFile(file)
    names, field = stored.schema_arrow.names, column.field or field
    if field not in names or not pa.types.is_binary(stored.schema_arrow.field(field).type):
        raise UserError(f"config: `{key}`: {file} has no binary field {field!r} (it has {', '.join(names)}).")
    batch = next(stored.iter_batches(64, columns=[field]), None)
    return next((value for value in batch.column(0).to_pylist() if value), None) if batch else None
