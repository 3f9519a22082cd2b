"""A slice of the 8 B captioner on a GPU: our step against a trainer's."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.sft_model import CLIP_L, ROW, STEPS, best, captioner, micro_batch, mix_lengths
from recap.sft.attention import choose as choose_attention
from recap.sft.flops import costs_of
from recap.sft.model import CaptionLoss
from recap.sft.packing import pack
from recap.train.parallel import gradient_norm, peak_flops


@dataclass(frozen=True)
class Slice:
    """A captioner to time a training step of. Default: 8 layers of the 8 B shape."""

    layers: int = 8
    hidden: int = 4096
    ffn: int = 14336
    heads: int = 32
    kv: int = 8
    words: int = 128_256
    vision: dict[str, int] = field(default_factory=lambda: CLIP_L)

    @property
    def image(self) -> int:
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2

    def micro(self, rows: list[list[int]], lengths: list[int], device: str) -> dict[str, Any]:
        return micro_batch(rows, lengths, self.image, self.vision["image_size"], device, self.words)


def on_gpu(shape: Slice | None = None, device: str = "cuda", samples: int = 32) -> dict[str, float]:
    """An optimizer step of so many samples: ours (packed, supervised logits) against transformers' Trainer."""
    shape = shape or Slice()
    torch.manual_seed(0)
    with torch.device(device):
        model = captioner(shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv, shape.words, shape.vision)
    peak_rate, lengths = peak_flops(torch.device(device)), mix_lengths(samples, 1)
    lengths = [max(8, n * shape.image // 576) for n in lengths]
    ways = {"ours": our_step, "transformers": trainer_step}
    found = {}
    for name, way in ways.items():
        seconds = way(model, shape, lengths, device)
        found[f"gpu tokens/s, {name}"] = sum(lengths) / seconds
        if peak_rate:
            shown = [n > shape.image for n in lengths]  # the second half of a sample's words is learned
            costs = costs_of(model)
            done = sum(costs.of(n, s, (n - shape.image * s) // 2) for n, s in zip(lengths, shown, strict=True))
            found[f"gpu MFU, {name}"] = done / seconds / peak_rate
    return found


def our_step(model: Any, shape: Slice, lengths: list[int], device: str) -> float:
    """Seconds of a step as `recap.train.loop` makes it."""
    model.model.language_model.set_attn_implementation(choose_attention("auto", device))
    module = CaptionLoss(model, 1024)
    batches = [shape.micro([row], lengths, device) for row in pack(lengths, ROW)]
    weight = sum(len(batch["labels"]) for batch in batches)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, fused=device == "cuda")

    def work() -> None:
        for batch in batches:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = module(batch)
            (loss / weight).backward()
        gradient_norm(module, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return best(work, STEPS, device)


def trainer_step(model: Any, shape: Slice, lengths: list[int], device: str) -> float:
    """Seconds of a step of transformers' Trainer: samples padded, four a pass, all logits."""
    model.model.language_model.set_attn_implementation("sdpa")
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.process_time() if device == "cpu" else time.perf_counter())

    def padded(numbers: list[int]) -> dict[str, torch.Tensor]:
        batch = shape.micro([[i] for i in numbers], lengths, "cpu")
        labels = torch.full_like(batch["input_ids"], -100)
        labels.view(-1)[batch["at"] + 1] = batch["labels"]
        shown = {"pixel_values": batch["pixel_values"]} if len(batch["image_at"]) else {}
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": (batch["input_ids"] != 2).long(),
            "labels": labels,
        } | shown

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=4, gradient_accumulation_steps=len(lengths) // 4,
            max_steps=STEPS + 1, learning_rate=2e-5, bf16=device == "cuda", use_cpu=device == "cpu",
            optim="adamw_torch_fused" if device == "cuda" else "adamw_torch", report_to="none", save_strategy="no",
            logging_strategy="no", remove_unused_columns=False, disable_tqdm=True,
            dataloader_num_workers=4 if device == "cuda" else 0,
        )  # fmt: skip
        data: Any = list(range(len(lengths)))
        Trainer(model=model, args=settings, train_dataset=data, data_collator=padded, callbacks=[Clock()]).train()
    return min(after - before for before, after in pairwise(ends))
