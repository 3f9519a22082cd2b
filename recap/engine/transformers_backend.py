"""The reference engine: transformers' plain `generate` on LLaVA checkpoints, slow and right.

Batches have one fixed shape (rows filled up with grey images, prompts padded on the left to one length), so that a
text never depends on its batch neighbours. `recap.engine.transformers_vision` runs the other models that see images,
`recap.engine.transformers_text` those of texts.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from recap import device as gpu
from recap.engine.captions import Pending
from recap.engine.checkpoint import open_checkpoint
from recap.engine.decode_pool import DecodePool
from recap.engine.holding import check_put
from recap.engine.interface import Caption, Request
from recap.engine.prompts import Prompt
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of weights and activations that a precision stands for on a device."""
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    if precision != "auto":
        return names[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if gpu.has_bf16() else torch.float16


@dataclass
class _Job:
    """One caption to make: a request in one prompt format, its image in place `place` of the decode ring."""

    pending: Pending
    prompt: Prompt
    place: int


class TransformersEngine:
    """`generate` on a LLaVA checkpoint, a fixed batch at a time."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        self.config, self.device = config, torch.device(device)
        self.checkpoint = open_checkpoint(config)
        self.book, self.sampler = self.checkpoint.book, Sampler.of(config)
        self.dtype = choose_dtype(config.precision, self.device)
        model = AutoModelForImageTextToText.from_pretrained(self.checkpoint.folder, dtype=self.dtype)
        self.model = plain(model.to(self.device))
        self.batch = config.micro_batch or (8 if self.device.type == "cpu" else 32)
        self.length = max(self.book.length(name) for name in self.book.formats)
        self.pool = DecodePool.of(config, self.checkpoint.geometry, config.queue or 3 * self.batch)
        self._pending: dict[int, Pending] = {}
        self._jobs: deque[_Job] = deque()
        self._places: dict[int, int] = {}  # ring place -> captions that still need it
        self._last_put = time.monotonic()
        self.starved_s = 0.0

    def want(self) -> int:
        return self.pool.room()

    def put(self, request: Request) -> None:
        check_put(request, self._pending, self.want())
        self.pool.put(request.id, request.image or b"")
        self._pending[request.id] = Pending(request, self.book.names(request.key))
        self._last_put = time.monotonic()

    def poll(self, timeout: float) -> list[Caption]:
        deadline = time.monotonic() + timeout
        while True:
            begun, filled = time.monotonic(), 0.0
            done = self._collect(min(0.02, max(0.0, deadline - begun)))
            quiet = time.monotonic() - self._last_put >= self.config.partial_wait_s
            if len(self._jobs) >= self.batch or (self._jobs and not self.pool.waiting and quiet):
                jobs = [self._jobs.popleft() for _ in range(min(self.batch, len(self._jobs)))]
                done += self._generate(jobs)
                filled = len(jobs) / self.batch
            self.starved_s += (1.0 - filled) * (time.monotonic() - begun)
            if done or not self._pending or time.monotonic() >= deadline:
                return done

    def close(self) -> None:
        self.pool.close()
        self._jobs.clear()
        self._pending.clear()
        del self.model

    def _collect(self, timeout: float) -> list[Caption]:
        """Turn decoded images into jobs; failed ones into captions with a reason."""
        if self._jobs:
            timeout = 0.0
        failed = []
        for image in self.pool.poll(timeout):
            pending = self._pending[image.id]
            if image.reason:
                self.pool.release(image.place)
                del self._pending[image.id]
                failed.append(Caption(image.id, reason=image.reason, transient=image.transient, detail=image.detail))
                continue
            pending.note = image.note
            self._places[image.place] = len(pending.names)
            request = pending.request
            for name in pending.names:
                self._jobs.append(_Job(pending, self.book.prompt(name, request.texts, request.key), image.place))
        return failed

    @torch.inference_mode()
    def _generate(self, jobs: list[_Job]) -> list[Caption]:
        """One batch of the fixed shape: `batch` rows, the longest prompt's length."""
        size = self.checkpoint.geometry.size
        pixels = torch.full((self.batch, size, size, 3), 127, dtype=torch.uint8)
        ids = torch.zeros(self.batch, self.length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        random_numbers = torch.zeros(self.batch, self.config.max_tokens)
        for row in range(self.batch):
            job = jobs[min(row, len(jobs) - 1)]  # rows without a job repeat the last prompt, on a grey image
            ids[row, -len(job.prompt.ids) :], mask[row, -len(job.prompt.ids) :] = (
                torch.tensor(job.prompt.ids),
                1,
            )
        for row, job in enumerate(jobs):
            pixels[row] = torch.from_numpy(self.pool.ring[job.place])
            request = job.pending.request
            random_numbers[row] = self.sampler.random_numbers(
                self.config.seed, request.key, job.prompt.format, self.config.max_tokens
            )
        new = generate(
            self.model,
            self.sampler,
            random_numbers,
            self.checkpoint.eos,
            self.config.max_tokens,
            self.config.beams,
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            pixel_values=self.checkpoint.normalise(pixels.to(self.device), self.dtype),
        )
        made = zip(jobs, new[: len(jobs)], strict=True)  # rows behind the jobs fill up the batch
        return [caption for job, row in made if (caption := self._finish(job, row))]

    def _finish(self, job: _Job, ids: list[int]) -> Caption | None:
        self._places[job.place] -= 1
        if not self._places[job.place]:
            del self._places[job.place]
            self.pool.release(job.place)
        prompt = job.prompt
        caption = job.pending.write(prompt.format, ids, prompt.max_tokens, self.checkpoint, self.config.trim)
        if caption:
            del self._pending[caption.id]
        return caption


def plain(model: Any) -> Any:
    """The model for evaluation, without the checkpoint's generation settings: `generate` would fall back to them."""
    model.generation_config = GenerationConfig()
    return model.eval()


def generate(
    model: Any,
    sampler: Sampler,
    random_numbers: torch.Tensor,
    eos: tuple[int, ...],
    max_tokens: int,
    beams: int = 1,
    /,
    **inputs: torch.Tensor,
) -> list[list[int]]:
    """New token ids of each row by `model.generate`, ignoring the checkpoint's other generation settings."""
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=beams,
        eos_token_id=list(eos),
        pad_token_id=eos[0],
        use_cache=True,
    )
    # A decoder of its own begins with its start token; others go on from the prompt.
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    processors = [] if sampler.greedy else [_Seeded(sampler, random_numbers, start)]
    found = model.generate(**inputs, generation_config=settings, logits_processor=LogitsProcessorList(processors))
    return found[:, start:].tolist()


class _Seeded(LogitsProcessor):
    """Leaves of each row's scores only the token that the sampler chooses, so that greedy search takes it."""

    def __init__(self, sampler: Sampler, random_numbers: torch.Tensor, start: int) -> None:
        self.sampler, self.random_numbers, self.start = sampler, random_numbers, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        token = self.sampler.choose(scores, self.random_numbers[:, step].to(scores.device))
        return torch.full_like(scores, float("-inf")).scatter(1, token[:, None], 0.0)
