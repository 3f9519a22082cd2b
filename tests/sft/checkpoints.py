"""Checkpoints that a test looks into: their tensors, and whether they caption."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from benchmarks.random_captioner import photo
from recap.engine import CaptionerConfig, Request, load_engine


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """float32, by name."""
    return dict(LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict())


def captions(folder: Path) -> None:
    """The caption job loads it, and it answers."""
    assert AutoProcessor.from_pretrained(folder).chat_template
    keys = (folder / "model.safetensors").read_bytes()[:20000]  # the header
    assert b"vision_tower.vision_model." in keys
    settings = CaptionerConfig(
        model=str(folder), backend="transformers", max_tokens=4, decode_workers=0, precision="fp32"
    )
    with closing(load_engine(settings, "cpu")) as engine:
        engine.put(Request(0, photo(1), key="a"))
        found: list[Any] = []
        while not found:
            found = list(engine.poll(1.0))
    assert found[0].id == 0
