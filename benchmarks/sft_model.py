"""What the benchmarks of fine-tuning train: a captioner with random weights, and batches for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from recap.sft.attention import lengths as bounds_of
from recap.sft.model import choose
from recap.train.parallel import to_device

ROW = 4096  # tokens
STEPS = 3  # that are timed, after one that is not


def mix_lengths(count: int, seed: int = 0) -> list[int]:
    """Tokens a sample, like LLaVA-1.5's 665k mix: mean about 870 (the mix itself is not here)."""
    noise = np.random.default_rng(seed)
    text = np.exp(noise.normal(np.log(220), 0.8, count)).clip(20, 1400).astype(int)
    image = np.where(noise.random(count) < 0.06, 0, 576)
    return [int(n) for n in text + image]


def captioner(layers: int, hidden: int, ffn: int, heads: int, kv: int, words: int, vision: dict[str, int]) -> Any:
    """A random LLaVA model on the current default device."""
    text = LlamaConfig(
        vocab_size=words, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=8192, tie_word_embeddings=False,
    )  # fmt: skip
    tower = CLIPVisionConfig(projection_dim=vision["hidden_size"], **vision)
    shape = LlavaConfig(vision_config=tower, text_config=text, image_token_id=1, vision_feature_layer=-2)
    made = LlavaForConditionalGeneration(shape)
    choose(made, ["multi_modal_projector", "language_model", "lm_head"])
    return made


SMALL_TOWER = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 112, "patch_size": 14,
}  # fmt: skip
CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip


def micro_batch(
    rows: list[list[int]], lengths: list[int], image: int, side: int, device: str, words: int
) -> dict[str, Any]:
    """Random samples in rows, as SftTask.collate makes them: an image, then text whose second half is learned."""
    longest = max(sum(lengths[i] for i in row) for row in rows)
    ids = torch.full((len(rows), longest), 2)
    positions = torch.arange(longest).repeat(len(rows), 1)
    at, pictures = [], 0
    for number, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            ids[number, start:end] = torch.randint(3, words, (lengths[i],))
            shown = image if lengths[i] > image else 0
            ids[number, start : start + shown] = 1
            pictures += shown > 0
            positions[number, start:end] = torch.arange(lengths[i])
            middle = start + shown + (lengths[i] - shown) // 2
            at += [number * longest + place - 1 for place in range(middle, end)]
            start = end
        positions[number, start:] = torch.arange(longest - start)
    where = torch.tensor(at)
    pixels = torch.randn(max(pictures, 1), 3, side, side)
    found = {
        "input_ids": ids, "position_ids": positions, "at": where, "labels": ids.flatten()[where + 1],
        "pixel_values": pixels, "image_at": (ids == 1).flatten().nonzero()[:, 0], **bounds_of(positions),
    }  # fmt: skip
    return to_device(found, torch.device(device))


def best(work: Callable[[], object], rounds: int, device: str = "cpu") -> float:
    """Least seconds of a few runs, after one that does not count. On the CPU: of this process's time, since other work
    of the machine is not to count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    found = []
    for number in range(rounds + 1):
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found += [clock() - start] if number else []
    return min(found)
