"""Prompts as tars, images sampled from them by a real map job, and two tiny CLIPs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CLIPConfig, CLIPModel

import tests.clip.parity  # noqa: F401 - a shim, before transformers is used
from recap.clip import weights
from recap.clip.tokens import Tokens
from recap.evaluate.image_sets import ImageItem
from recap.worlds.tars import write_tar
from tests.clip.models import tiny, tokenizer
from tests.clip.world import sample
from tests.evaluate.paint import paint

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class World:
    """Folders: real (tars of real images), raw (a run), recap (tars of images and prompts), ours and theirs (CLIPs)."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name


def items(count: int, noise: int = 0, seed: int = 0) -> list[ImageItem]:
    rng = random.Random(seed)
    prompts = [sample(rng)[2] for _ in range(count)]
    return [ImageItem(f"{i}", f"image {i}", paint(p, noise, i), p) for i, p in enumerate(prompts)]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """40 prompts in two tars; from the originals a run of two guidance values, from recaptions tars of images."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("real", "prompts", "recap"):
        (folder / name).mkdir()
    for shard in range(2):
        rng = random.Random(shard)
        made = [(f"{shard}{i:03d}", *sample(rng)) for i in range(20)]
        members = {
            "real": [(key, {"png": png}) for key, png, _, _ in made],
            "prompts": [(key, {"txt": f"{alt} {key}".encode()}) for key, _, alt, _ in made],
            "recap": [
                (key, {"png": paint(text, 30, i), "txt": text.encode(), "json": b'{"guidance": 2.0}'})
                for i, (key, _, _, text) in enumerate(made)
            ],
        }
        for name, samples in members.items():
            with (folder / name / f"{shard}.tar").open("wb") as file:
                write_tar(file, samples)
    _sample(folder, [2.0, 60.0])
    _clips(folder)
    return World(folder)


def _sample(folder: Path, guidance: list[float]) -> None:
    config = {
        "operator": "tests.evaluate.paint.Paint", "data": {"shards": [str(folder / "prompts")]},
        "guidance": guidance, "cluster": "local", "runs": str(folder), "name": "raw",
    }  # fmt: skip
    file = folder / "raw.yaml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "hpc.launch", str(file)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _clips(folder: Path) -> None:
    """`ours`: an export of this toolkit that reads 64 tokens; `theirs`: transformers' files, which read 10."""
    torch.manual_seed(0)
    config = tiny(folder, "recap", context=64)
    weights.save(weights.build(config, 32, 0), config, Tokens(config), 32, folder / "ours")
    torch.manual_seed(1)
    theirs = folder / "theirs"
    tokenizer(theirs, "hf")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 40, "max_position_embeddings": 10, "eos_token_id": 6, "bos_token_id": 5, "pad_token_id": 0}
    made = CLIPConfig(
        projection_dim=16, text_config=tower | text, vision_config=tower | {"image_size": 24, "patch_size": 8}
    )
    CLIPModel(made).save_pretrained(theirs)
    processing = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 24},
        "do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "resample": 3, "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    }  # fmt: skip
    (theirs / "preprocessor_config.json").write_text(json.dumps(processing))
