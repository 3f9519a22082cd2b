"""Stages of benchmarks/gpu.py that measure training steps: SFT's, CLIP's and DiT's."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_setting import Note, Setting
from recap import device as gpu
from recap.train.parallel import peak_flops


def timed(setting: Setting, note: Note, step: Callable[[], None], samples: int, label: str = "") -> None:
    """Samples/s of a training step and the share of the device's peak that its matrices come to (MFU)."""
    with FlopCounterMode(display=False) as counter:  # also the warm-up
        step()
    calls = 20 if setting.device.type == gpu.GPU else 1
    gpu.synchronise(setting.device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    gpu.synchronise(setting.device)
    each = (time.perf_counter() - start) / calls
    note(f"{label}samples/s", samples / each)
    note(f"{label}GFLOP a sample", counter.get_total_flops() / samples / 1e9)
    if peak := peak_flops(setting.device):
        note(f"{label}MFU", counter.get_total_flops() / each / peak)


def sft(setting: Setting, note: Note) -> None:
    """An optimizer step of 8 layers of the 8 B shape: ours (packed) against transformers' Trainer."""
    from benchmarks.sft_gpu import on_gpu

    for name, value in on_gpu(setting.sft, str(setting.device), setting.sft_samples).items():
        note(name.removeprefix("gpu "), value)


def clip(setting: Setting, note: Note) -> None:
    """CLIP's step on uint8 pixels that are on the device: eager, then compiled block by block."""
    from benchmarks.clip import our_step

    batch = setting.clip["batch"]
    step, model = our_step(device=setting.device.type, **setting.clip)
    timed(setting, note, step, batch, "eager, ")
    if setting.device.type == gpu.GPU:
        for block in model.blocks():
            block.compile()
        step()
        timed(setting, note, step, batch, "compiled, ")


def dit(setting: Setting, note: Note) -> None:
    """DiT's step from latents: eager, then compiled block by block."""
    from benchmarks.dit import Codec, Ours, Text, micro_batch, transformer

    size, side, batch = setting.dit["size"], setting.dit["side"], setting.dit["batch"]
    device = setting.device.type
    model = transformer(size, side, device)
    step = Ours(model, Text().to(device), Codec(device), micro_batch(batch, side, device, False, 40))
    timed(setting, note, step, batch, "eager, ")
    if device == gpu.GPU:
        for block in model.transformer_blocks:
            block.compile()
        step()
        timed(setting, note, step, batch, "compiled, ")
