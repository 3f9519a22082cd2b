"""A small world and a small frozen text encoder for DiT trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from hpc.operator import Item, Row
from tests.clip.models import tokenizer
from tests.clip.world import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tars/, recap/ (columns) and encoder/ (a CLIP text tower of two layers with its tokenizer)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("dit")
    write_world(folder, broken=41)
    encoder = tokenizer(folder / "encoder", "hf")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 0}
    CLIPTextModel(
        CLIPTextConfig(vocab_size=40, max_position_embeddings=16, projection_dim=32, **shape, **ids)
    ).save_pretrained(encoder)
    return folder


def tree(world: Path, **changes: Any) -> dict[str, Any]:
    """A DiT config's content: pixel space, 16 px; changes as group__key=value."""
    made: dict[str, Any] = {
        "name": "dit",
        "cluster": {"kind": "local"},
        "trainer": "recap.dit.trainer.DitTrainer",
        "model": {"size": "32x2x2/4", "image": 16, "text_encoder": str(world / "encoder"), "context": 16},
        "data": {
            "shards": [str(world / "tars")],
            "columns": {
                "org_caption": {"member": "txt"},
                "re_caption": {"folder": str(world / "recap"), "field": "caption"},
            },
            "streams": 4,
            "window": 2,
            "decoders": 1,
        },
        "text": {"weights": {"org_caption": 0.5, "re_caption": 0.5}},
        "train": {"batch": 48, "samples": 480, "lr": 2e-3, "threads": 1, "ema": 480, "max_rejected": 0.1},
    }
    for key, value in changes.items():
        target, keys = made, key.split("__")
        for part in keys[:-1]:
            target = target.setdefault(part, {})
        target[keys[-1]] = value
    return made


def items(operator: Any) -> list[Item]:
    return [item for shard in operator.plan() for item in operator.read(shard)]


def rows_of(operator: Any, given: list[Item] | None = None) -> list[Row]:
    """What an engine would get of an operator, on the CPU."""
    given = items(operator) if given is None else given
    operator.setup("cpu")
    rows: list[Row] = []
    for item in given:
        while operator.want() <= 0:
            rows += operator.poll(0.2)
        operator.put(item)
    while len(rows) < len(given):
        rows += operator.poll(0.2)
    operator.close()
    return rows
