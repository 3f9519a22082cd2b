"""What is said at launch of a DiT training: of the weights to start from, the text encoder, stored embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc import config as configs
from hpc.base.errors import UserError
from recap.data.column import ColumnConfig
from recap.data.rows import RowsConfig
from recap.dit.text_embeddings import TextEmbeddingsConfig, TextEmbeddingsOperator
from tests.dit.conftest import rows_of, tree

START = {
    "in_channels": 3, "sample_size": 16, "caption_channels": 32, "patch_size": 4, "out_channels": 3, "num_layers": 2,
    "num_attention_heads": 2, "attention_head_dim": 16,
}  # fmt: skip


def check(config: dict[str, Any]) -> None:
    configs.check(json.loads(json.dumps(config)), "test").trainer().check(1)


def start(folder: Path, **changes: int) -> str:
    (folder / "config.json").write_text(json.dumps(START | changes))
    return str(folder)


@pytest.mark.parametrize("key", START)
def test_weights_of_another_shape(world: Path, tmp_path: Path, key: str) -> None:
    check(tree(world, model__start=start(tmp_path)))
    with pytest.raises(UserError, match=f"`model.start`: .* has {key} 99, this config makes {START[key]}"):
        check(tree(world, model__start=start(tmp_path, **{key: 99})))


def test_embeddings_cut_elsewhere(world: Path, tmp_path: Path) -> None:
    data = RowsConfig(shards=[str(world / "tars")], columns={"org_caption": ColumnConfig(member="txt")})
    made = TextEmbeddingsOperator(
        TextEmbeddingsConfig(data=data, text="org_caption", text_encoder=str(world / "encoder"), context=16)
    )
    rows = rows_of(made)
    for shard in {row.shard for row in rows}:
        found = [row for row in rows if row.shard == shard]
        table: dict[str, Any] = {"key": [row.key for row in found], "status": [row.status for row in found]}
        for name, kind in made.column().fields:
            table[name] = pa.array([row.values.get(name) for row in found], kind)
        pq.write_table(pa.table(table), tmp_path / f"{shard}.parquet", row_group_size=512)
    columns = tree(world)["data"]["columns"] | {"states": {"folder": str(tmp_path), "field": "states"}}
    stored = {"data__columns": columns, "data__embeddings": {"org_caption": "states"}}
    config = tree(world, text__weights={"org_caption": 1.0}, **stored)
    check(config)
    config["model"]["context"] = 12
    with pytest.raises(UserError, match=r"`data.embeddings`: column states: its texts were cut at 16 tokens, .* is 12"):
        check(config)
