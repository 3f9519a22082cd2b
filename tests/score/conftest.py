"""Coloured squares with an original and a new text, and a tiny CLIP of transformers' that has not learned anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import tests.clip.parity  # noqa: F401 - a shim, before transformers is used
from tests.clip.models import tokenizer
from tests.clip.world import write_world

torch.set_num_threads(1)

SHARDS, SAMPLES, CONTEXT = 2, 30, 8


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tars/, recap/ (a column), clip/ (reads 8 tokens: new texts are cut, original ones are not)."""
    folder = tmp_path_factory.mktemp("score")
    write_world(folder, SHARDS, SAMPLES, broken=17)
    write_clip(folder / "clip")
    return folder


def write_clip(folder: Path, seed: int = 1) -> None:
    tokenizer(folder, "hf")
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": 40, "max_position_embeddings": CONTEXT, "eos_token_id": 6, "bos_token_id": 5, "pad_token_id": 0,
    }  # fmt: skip
    vision = tower | {"image_size": 24, "patch_size": 8}
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(projection_dim=16, text_config=tower | text, vision_config=vision)).save_pretrained(folder)
    processing = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 24},
        "do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "resample": 3, "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))


def tree(world: Path, runs: Path, name: str = "scores", **changes: Any) -> dict[str, Any]:
    """A scoring job over the world's tars and both texts."""
    made: dict[str, Any] = {
        "name": name, "runs": str(runs), "operator": "recap.score.operator.ScoreOperator", "batch": 16,
        "data": {
            "shards": [f"{world}/tars"],
            "columns": {"org": {"member": "txt"}, "re": {"folder": f"{world}/recap", "field": "caption"}},
        },
        "texts": ["org", "re"],
        "decode_workers": 0,
    }  # fmt: skip
    return made | changes
