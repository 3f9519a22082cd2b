"""Captioning work that contenders share, and the contenders: transformers' generate and the native engine.

Images of one size, one prompt, and for each image a forced number of tokens, lognormal as real captions are
(median 56, sigma 0.40, 8 to 128), since random weights never end a caption.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.random_captioner import Shape, build, make_tokenizer, write_processor
from benchmarks.timing import seconds
from recap.engine import CaptionerConfig, Request
from recap.engine.agreement import equal_start
from recap.engine.checkpoint import Normalisation
from recap.engine.generator import Generator, Image, Shapes, Text
from recap.engine.native import NativeEngine
from recap.engine.sampling import Sampler

# Four query heads share a key-value head, as in LLaMA-3.
TINY = Shape(
    hidden=128, layers=3, heads=4, kv_heads=1, ffn=352, vocabulary=1024, image=112, patch=14,
    vision_hidden=64, vision_layers=4, vision_heads=2, vision_ffn=256,
)  # fmt: skip
# LLaVA-1.5's vision tower (CLIP ViT-L/14-336) and projector with LLaMA-3-8B: Recap-DataComp-1B's captioner.
LLAMA3_8B = Shape(
    hidden=4096, layers=32, heads=32, kv_heads=8, ffn=14336, vocabulary=128256, image=336, patch=14,
    vision_hidden=1024, vision_layers=24, vision_heads=16, vision_ffn=4096, rope="llama3",
)  # fmt: skip
# For a rehearsal of the GPU run: as little as has every part.
SMALLEST = Shape(layers=2)
MAX_TOKENS = 128
NORMALISE = Normalisation(1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass
class Work:
    """What every contender gets. `ids` is the prompt with the image's repeated token."""

    model: Any
    shape: Shape
    ids: list[int]
    prefix: int
    image_token: int
    pixels: np.ndarray
    lengths: np.ndarray

    @property
    def images(self) -> int:
        return len(self.pixels)


def make_work(shape: Shape, images: int, device: torch.device, dtype: torch.dtype, suffix: int = 15) -> Work:
    """Random weights, images and lengths; a prompt of 10 tokens, the image, and `suffix` tokens."""
    tokenizer = make_tokenizer(min(shape.vocabulary, 1024))
    with device:
        torch.set_default_dtype(dtype)
        model = build(shape, tokenizer, seed=0, scale=1.0).to(device)
        torch.set_default_dtype(torch.float32)
    # generate falls back to these wherever its own settings say None: no token may end a caption here.
    model.generation_config = GenerationConfig(pad_token_id=0)
    noise = np.random.default_rng(0)
    token = model.config.image_token_index
    features = (shape.image // shape.patch) ** 2
    words = noise.integers(10, 300, 10 + suffix).tolist()
    lengths = np.clip(np.round(noise.lognormal(np.log(56), 0.40, images)), 8, MAX_TOKENS).astype(int)
    pixels = noise.integers(0, 256, (images, shape.image, shape.image, 3), dtype=np.uint8)
    return Work(model, shape, [*words[:10], *[token] * features, *words[10:]], 10, token, pixels, lengths)


class ForcedLengths(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, lengths: np.ndarray, start: int, device: torch.device) -> None:
        self.lengths, self.start = torch.tensor(lengths, device=device), start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] - self.start >= self.lengths


def run_generate(work: Work, batch: int, cache: str | None) -> dict[int, list[int]]:
    """transformers' generate, in batches as they come."""
    device, dtype = work.model.device, work.model.dtype
    found: dict[int, list[int]] = {}
    for start in range(0, work.images, batch):
        pixels = torch.from_numpy(work.pixels[start : start + batch]).to(device)
        lengths = work.lengths[start : start + batch]
        ids = torch.tensor([work.ids] * len(pixels), device=device)
        settings = GenerationConfig(
            max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, cache_implementation=cache
        )
        with torch.inference_mode():
            new = work.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=NORMALISE(pixels, dtype),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([ForcedLengths(lengths, len(work.ids), device)]),
            )
        for row, tokens in enumerate(new[:, len(work.ids) :].tolist()):
            found[start + row] = tokens[: lengths[row]]
    return found


def make_generator(work: Work, micro_batch: int, slots: int, precision: str, cuda_graph: bool = True) -> Generator[int]:
    """The native engine's generator with the work's weights."""
    shapes = Shapes(
        micro_batch=micro_batch,
        slots=slots,
        max_tokens=MAX_TOKENS,
        prefix=tuple(work.ids[: work.prefix]),
        width=len(work.ids),
        image_token=work.image_token,
        eos=(),
    )
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return Generator(
        work.model, shapes, Sampler(), NORMALISE, work.shape.image, work.model.device, dtype,
        fp8=precision.startswith("fp8"), kv_fp8=precision == "fp8+kv", cuda_graph=cuda_graph,
    )  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """A moment of a run, after a step: captions finished and images begun."""

    clock: float
    finished: int
    begun: int


def run_native(work: Work, generator: Generator[int], trace: list[Turn] | None = None) -> dict[int, list[int]]:
    """The native engine's own loop, pixels in memory. Every turn is noted in `trace`."""
    found: dict[int, list[int]] = {}
    random_numbers, n, next_image = torch.zeros(MAX_TOKENS), generator.shapes.micro_batch, 0
    while len(found) < work.images:
        if next_image < work.images and generator.room():
            several = range(next_image, min(next_image + n, work.images))
            generator.fill(
                [Image(work.pixels[i], [Text(i, work.ids, int(work.lengths[i]), random_numbers)]) for i in several]
            )
            next_image += n
        found.update(generator.step())
        if trace is not None:
            trace.append(Turn(time.perf_counter(), len(found), next_image))
    return found


def steady_rate(trace: list[Turn], slots: int, images: int) -> float | None:
    """Images/s between two moments with full slots; None where a run is too short for it.

    From when as many captions are finished as there are slots (those that began together no longer end together)
    to the last moment at which an image was still waiting for a slot. In between, twice as many captions end
    as there are slots, so that those half written at either end weigh little.
    """
    full = [turn for turn in trace if turn.finished >= slots and turn.begun < images]
    if not full or full[-1].finished - full[0].finished < 2 * slots:
        return None
    return (full[-1].finished - full[0].finished) / (full[-1].clock - full[0].clock)


def compare(work: Work, ours: dict[int, list[int]], theirs: dict[int, list[int]]) -> dict[str, Any]:
    """Equal texts, and the score margin in transformers wherever one of ours first differs.

    Two computations of one sum differ in rounding; greedy decoding turns that into another text where the two
    best tokens are as good as equal. A margin well above rounding would be an error.
    """
    different = [i for i in ours if ours[i] != theirs[i]]
    margins: list[float] = []
    for i in different:
        at = equal_start(ours[i], theirs[i])
        # A written image token would stand for an image when transformers reads the text again.
        if len(margins) == 16 or work.image_token in theirs[i][:at]:
            continue
        ids = torch.tensor([work.ids + theirs[i][:at]], device=work.model.device)
        pixels = torch.from_numpy(work.pixels[i : i + 1]).to(work.model.device)
        with torch.inference_mode():
            logits = work.model(input_ids=ids, pixel_values=NORMALISE(pixels, work.model.dtype)).logits[0, -1].float()
        margins.append(abs(float(logits[theirs[i][at]] - logits[ours[i][at]])) / float(logits.std()))
    prefix = [equal_start(ours[i], theirs[i]) for i in ours]
    return {
        "identical": len(ours) - len(different),
        "images": len(ours),
        "mean_equal_prefix": float(np.mean(prefix)),
        "largest_margin_in_standard_deviations": max(margins, default=0.0),
    }


class BenchmarkEngine(NativeEngine):
    """The native engine, exactly, with each caption's length forced by its key."""

    lengths: dict[str, int]

    def _texts(self, pending: Any) -> list[Text[Any]]:
        return [replace(text, limit=self.lengths[pending.request.key]) for text in super()._texts(pending)]


def end_to_end(work: Work, config: CaptionerConfig, photos: list[bytes]) -> dict[str, float]:
    """Encoded images to texts through the engine that users run: images/s and the device's busy share."""
    with tempfile.TemporaryDirectory() as folder:
        write_processor(work.shape, make_tokenizer(min(work.shape.vocabulary, 1024)), Path(folder))
        work.model.config.save_pretrained(folder)
        engine = BenchmarkEngine(replace(config, model=folder), str(work.model.device), work.model)
    engine.lengths = {str(i): int(length) for i, length in enumerate(work.lengths)}
    try:
        requests = [Request(i, photos[i], key=str(i)) for i in range(work.images)]
        drive(engine, requests[: engine.generator.shapes.slots // 2])  # processes started, kernels compiled
        engine.idle_s, engine.generator.times = 0.0, type(engine.generator.times)()
        spent = seconds(lambda: drive(engine, requests), engine.device)
        times, slots = engine.generator.times, engine.generator.shapes.slots
        return {
            "images_per_s": work.images / spent,
            "busy": 1 - engine.idle_s / spent,
            "occupancy": times.busy / times.steps / slots,
        }
    finally:
        engine.close()


def drive(engine: NativeEngine, requests: list[Request]) -> None:
    left, todo = len(requests), list(reversed(requests))
    while left:
        while todo and engine.want():
            engine.put(todo.pop())
        for caption in engine.poll(0.05):
            if caption.reason:
                raise RuntimeError(f"image {caption.id}: {caption.reason} {caption.detail}")
            left -= 1
