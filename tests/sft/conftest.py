"""A tiny captioner with the marks of LLaMA-3's template, and conversations about random pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch

from benchmarks.random_captioner import Shape, make, photo
from hpc import config as configs
from recap.sft.settings import SftConfig
from recap.sft.task import SftTask

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA checkpoint of 16 image tokens, whose tokenizer knows LLaMA-3's marks."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = make(tmp_path_factory.mktemp("captioner"), Shape())
    processor = AutoProcessor.from_pretrained(folder)
    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    processor.tokenizer.add_tokens(marks, special_tokens=True)
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    llava.resize_token_embeddings(len(processor.tokenizer))
    llava.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


ROWS = [
    {
        "id": f"row-{n}",
        "image": f"{n:03d}.jpg",
        "conversations": [
            {"from": "human", "value": "What is this?\n<image>"},
            {"from": "gpt", "value": "a picture " + "of many colours " * (n % 5) + f"number {n}"},
            {"from": "human", "value": "And what else?"},
            {"from": "gpt", "value": "nothing " * (n % 3) + "more"},
        ],
    }
    for n in range(24)
]


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """data.json and images/ in LLaVA's format, one sample of text alone among them."""
    rows = [dict(row) for row in ROWS]
    talk = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi there"}]
    rows[5] = {"id": "words", "conversations": talk}
    (tmp_path / "images").mkdir()
    for n in range(24):
        (tmp_path / "images" / f"{n:03d}.jpg").write_bytes(photo(n))
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


Make = Callable[..., SftTask]


def tree(captioner: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A config's keys."""
    source = {"kind": "llava", "path": str(folder / "data.json"), "images": str(folder / "images")}
    trained = ["multi_modal_projector", "language_model", "lm_head"]
    keys = {
        "trainer": "recap.sft.trainer.SftTrainer", "name": "sft", "runs": str(folder / "runs"),
        "model": str(captioner), "template": "vicuna", "trainable": trained,
        "data": [source], "max_tokens": 256, "cluster": {"kind": "local"}, "train": {"batch": 8},
    }  # fmt: skip
    train = {**keys["train"], **changes.pop("train", {})}  # type: ignore[dict-item]
    return {**keys, **changes, "train": train}


@pytest.fixture
def task(captioner: Path, conversations: Path) -> Make:
    """Makes a task from changes to a config."""

    def make_task(**changes: Any) -> SftTask:
        config = configs.check(tree(captioner, conversations, **changes), "test")
        config.trainer().check(1)
        work: SftConfig = config.work
        return SftTask(work, Path(work.model))

    return make_task


@pytest.fixture
def clip(captioner: Path, tmp_path: Path) -> Path:
    """The CLIP that the original was trained with: its tower moved a little where the checkpoint has its own."""
    from transformers import CLIPVisionModel, LlavaForConditionalGeneration

    ours = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    tower = CLIPVisionModel(ours.config.vision_config)
    tower.load_state_dict(ours.model.vision_tower.state_dict())
    tower.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"
