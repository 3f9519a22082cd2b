"""Stages of benchmarks/gpu.py that measure captioning: the device's rates, the engine, and what it is compared with."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.caption_work import (
    MAX_TOKENS,
    Turn,
    Work,
    end_to_end,
    make_generator,
    make_work,
    run_generate,
    run_native,
    steady_rate,
)
from benchmarks.gpu_setting import Note, Setting
from benchmarks.photos import encoded_photos
from benchmarks.rates import copy_rate, matmul_rate, matrix_sizes, vision_sizes
from benchmarks.timing import DeviceMonitor, milliseconds, seconds
from recap import device as gpu
from recap.engine import CaptionerConfig
from recap.engine.generator import Generator
from recap.engine.native import fitting_slots, warm_up
from recap.engine.precision import FP8


def monitor(setting: Setting) -> DeviceMonitor:
    return DeviceMonitor(gpu.uuid(setting.device) if setting.device.type == gpu.GPU else "0")


def work_of(setting: Setting, images: int | None = None) -> Work:
    return make_work(setting.shape, images or setting.images, setting.device, torch.bfloat16)


def rates(setting: Setting, note: Note) -> None:
    """What the device does at most on the model's own shapes."""
    device, shape, spend = setting.device, setting.shape, setting.sustain_s
    note("vector copy, bytes/s", copy_rate(device, spend / 4))
    patches = (shape.image // shape.patch) ** 2
    prompt = setting.micro_batch * (patches + 15)
    kinds = {"bf16": torch.bfloat16} | ({"fp8": FP8} if gpu.has_fp8(device) else {})
    for name, dtype in kinds.items():
        with monitor(setting) as sensors:
            note(f"prefill matrices {name}, FLOP/s", matmul_rate(prompt, matrix_sizes(shape), device, dtype, spend))
        note(f"sensors, {name}", sensors.found)
        for rows in (256, 512):
            found = matmul_rate(rows, matrix_sizes(shape), device, dtype, spend / 4)
            note(f"decode matrices {name}, {rows} rows, FLOP/s", found)
    rows = setting.micro_batch * (patches + 1)
    note("vision matrices bf16, FLOP/s", matmul_rate(rows, vision_sizes(shape), device, torch.bfloat16, spend / 4))
    head = [(shape.hidden, shape.vocabulary)]
    note("head bf16, 512 rows, FLOP/s", matmul_rate(512, head, device, torch.bfloat16, spend / 4))


def precision(name: str) -> Callable[[Setting, Note], None]:
    """The stage of one of the engine's precisions: bf16, fp8 or fp8+kv."""

    def run(setting: Setting, note: Note) -> None:
        if name.startswith("fp8") and not gpu.has_fp8(setting.device):
            note("left out", f"{gpu.name(setting.device)} has no fp8")
            return
        work, n = work_of(setting), setting.micro_batch
        start = time.perf_counter()
        generator = make_generator(work, n, n, name)
        slots = setting.slots or fitting_slots(generator, 0.8)
        generator.reset(replace(generator.shapes, slots=slots))
        warm_up(generator)
        note("slots", slots)
        note("seconds to be ready", time.perf_counter() - start)
        for stage, each in stage_milliseconds(work, generator).items():
            note(f"{stage}, ms", each)
        measure_captioning(setting, note, work, generator)

    return run


def measure_captioning(setting: Setting, note: Note, work: Work, generator: Generator[int]) -> None:
    """Images/s of the whole run, drain included, and between full slots; what a caption's stages take of it."""
    generator.times = type(generator.times)()
    trace: list[Turn] = []
    found: dict[int, list[int]] = {}
    with monitor(setting) as sensors:
        spent = seconds(lambda: found.update(run_native(work, generator, trace)), setting.device)
    times = generator.times
    assert {i: len(tokens) for i, tokens in found.items()} == dict(enumerate(work.lengths.tolist()))
    note("images/s", work.images / spent)
    note("images/s between full slots", steady_rate(trace, generator.shapes.slots, work.images))
    note("steps an image", times.steps / work.images)
    note("slots busy", times.busy / times.steps / generator.shapes.slots)
    note("sensors", sensors.found)


def stage_milliseconds(work: Work, generator: Generator[int]) -> dict[str, float]:
    """Each pass alone: vision and prefill of a micro-batch, one decode step of half-written captions."""
    n = generator.shapes.micro_batch
    pixels = torch.from_numpy(work.pixels[:n]).to(generator.device)
    slots = torch.arange(n, device=generator.device)
    last = torch.full((n,), len(work.ids) - 1, device=generator.device)
    x = torch.randn(n, len(work.ids) - work.prefix, work.shape.hidden, device=generator.device, dtype=generator.dtype)
    encoder, normalise = generator.encoder, generator.normalise
    assert encoder is not None and normalise is not None, "a model of images"
    actions: dict[str, Callable[[], Any]] = {
        "vision": lambda: encoder(normalise(pixels, generator.dtype)),
        "prefill": lambda: generator.decoder.prefill(x, slots, work.prefix, last),
        "step": generator._graph.replay if generator._graph else generator._advance,
    }
    with torch.inference_mode():
        generator.positions.fill_(len(work.ids) + int(work.lengths.mean()) // 2)
        found = {name: milliseconds(action, generator.device) for name, action in actions.items()}
    generator.reset(generator.shapes)
    if generator.graphed:
        warm_up(generator)
    return found


def generate(setting: Setting, note: Note) -> None:
    """transformers' generate at growing batches, with its dynamic cache and then the static one (compiled)."""
    for cache in (None, "static"):
        for batch in setting.batches:
            work, label = work_of(setting, batch), f"{cache or 'dynamic'} cache, batch {batch}, images/s"
            try:
                short = replace(work, lengths=np.minimum(work.lengths, 12))
                run_generate(short, batch, cache)
                spent = seconds(lambda w=work, b=batch, c=cache: run_generate(w, b, c), setting.device)
            except Exception as error:  # noqa: BLE001 - a baseline that cannot run (memory, compiler) is reported
                note(label, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            else:
                note(label, batch / spent)
            del work
            gc.collect()
            gpu.release_memory()


def from_jpegs(setting: Setting, note: Note) -> None:
    """Encoded images to texts through the engine that users run, in the fastest precision."""
    work = work_of(setting)
    fast = gpu.has_fp8(setting.device)
    config = CaptionerConfig(
        max_tokens=MAX_TOKENS, micro_batch=setting.micro_batch, slots=setting.slots, template="{image}{prompt}",
        prompt="a b c", decode_workers=setting.decode_workers, precision="fp8" if fast else "bf16",
        kv_precision="fp8" if fast else "auto",
    )  # fmt: skip
    found = end_to_end(work, config, encoded_photos(work.images, 512, 384))
    note("precision", "fp8+kv" if fast else "bf16")
    note("decode processes", setting.decode_workers)
    for name, value in found.items():
        note({"images_per_s": "images/s"}.get(name, name), value)


def vllm(setting: Setting, note: Note) -> None:
    """vLLM where it can be imported, with the memory and slots that ours had."""
    import vllm as package

    from benchmarks.caption_vllm import run_vllm

    note("version", package.__version__)
    cpu, some = torch.device("cpu"), replace(setting.shape, layers=1, vision_layers=2)  # vLLM makes weights of its own
    work = make_work(some, setting.images, cpu, torch.bfloat16)
    slots = setting.slots or 512
    given: dict[str, Any] = {"gpu_memory_utilization": 0.8, "slots": slots}
    note("given", given)
    fp8 = {"quantization": "fp8"}
    for name, options in {"bf16": {}, "fp8": fp8, "fp8+kv": fp8 | {"kv_cache_dtype": "fp8"}}.items():
        found = run_vllm(setting.shape, work.pixels, work.ids, work.lengths, **given | options)
        note(f"{name}, images/s", found["images_per_s"])
