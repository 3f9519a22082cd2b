"""What the stages of benchmarks/gpu.py are told: the device, the shapes, how much of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.caption_work import LLAMA3_8B, SMALLEST
from benchmarks.random_captioner import Shape
from benchmarks.sft_gpu import Slice
from benchmarks.sft_model import SMALL_TOWER

Note = Callable[[str, Any], None]
"""Takes a name and a value (JSON's types), which are in gpu.json from then on."""


@dataclass(frozen=True)
class Setting:
    """What a run of benchmarks.gpu measures with.

    Attributes:
        images, slots, micro_batch: of the engine's runs; slots None: as many as the memory holds.
        batches: sizes that transformers' generate is tried with.
        sustain_s: seconds that each rate is measured for.
        small: a captioner that a CPU can check. checked: images that it captions.
        sft, sft_samples: the model of the fine-tuning step, and its samples.
        clip, dit: arguments of the training steps of CLIP and DiT.
    """

    device: torch.device
    shape: Shape
    images: int
    slots: int | None
    micro_batch: int
    batches: tuple[int, ...]
    sustain_s: float
    decode_workers: int
    small: Shape
    checked: int
    sft: Slice
    sft_samples: int
    clip: dict[str, Any] = field(default_factory=dict)
    dit: dict[str, Any] = field(default_factory=dict)


REAL = Setting(
    device=torch.device("cuda"),
    shape=LLAMA3_8B,
    images=2304,
    slots=None,
    micro_batch=32,
    batches=(64, 128, 256),
    sustain_s=4.0,
    decode_workers=8,
    small=Shape(hidden=512, layers=4, heads=4, kv_heads=2, head_dim=128, ffn=1024, image=112, patch=14),
    checked=32,
    sft=Slice(),
    sft_samples=32,
    clip={"vision": "B", "text": "base", "image": 224, "batch": 512},
    dit={"size": "B/4", "side": 256, "batch": 256},
)
REHEARSAL = Setting(
    device=torch.device("cpu"),
    shape=SMALLEST,
    images=16,
    slots=2,
    micro_batch=1,
    batches=(4,),
    sustain_s=0.02,
    decode_workers=1,
    small=SMALLEST,
    checked=6,
    sft=Slice(layers=1, hidden=64, ffn=96, heads=2, kv=1, words=256, vision=SMALL_TOWER),
    sft_samples=8,
    clip={"vision": "64x1x1", "text": "64x1x1", "image": 32, "batch": 4},
    dit={"size": "64x1x2/4", "side": 64, "batch": 2},
)
