"""The native engine: requests in, captions out, around a `Generator`.

    decode processes -> ring of pixels -> micro-batches of images -> generator -> text

The loop, one turn of `poll`: take decoded images; fill free slots when a micro-batch is ready; one step for
all slots.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from hpc.base.errors import UserError
from recap import device as gpu
from recap.engine.captions import Pending
from recap.engine.checkpoint import Checkpoint, Normalisation, image_tokens, open_checkpoint
from recap.engine.decode_pool import DecodePool
from recap.engine.generator import Generator, Image, Shapes, Text
from recap.engine.holding import check_put
from recap.engine.interface import Caption, Request
from recap.engine.prompts import Prompt, PromptBook
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype

log = logging.getLogger(__name__)

_MOST_SLOTS = 512  # more bring nothing: decoding is compute-bound long before


@dataclass
class _Job:
    """What a slot writes: one prompt format of a pending request."""

    pending: Pending
    prompt: Prompt


class NativeEngine:
    """Captions with this package's own decoder. See `recap.engine.interface.Engine`."""

    def __init__(self, config: CaptionerConfig, device: str, model: Any = None) -> None:
        """`model`: the loaded model, where the checkpoint has no weights (benchmarks)."""
        self.config, self.device = config, torch.device(device)
        self.checkpoint = open_checkpoint(config, weights=model is None)
        self.book, self.sampler = self.checkpoint.book, Sampler.of(config)
        self.dtype = choose_dtype(config.precision, self.device)
        check_precision(config, self.device)
        if model is None:
            model = AutoModelForImageTextToText.from_pretrained(self.checkpoint.folder, dtype=self.dtype)
        shapes = make_shapes(self.checkpoint, config, self.device)
        self.generator: Generator[_Job] = build_generator(
            model.eval(), shapes, self.sampler, config, self.device, self.dtype,
            self.checkpoint.normalise, self.checkpoint.geometry.size,
        )  # fmt: skip
        del model
        shapes = self.generator.shapes
        self._ring = config.queue or 2 * shapes.micro_batch + max(16, 4 * config.decode_workers)
        self.pool = DecodePool.of(config, self.checkpoint.geometry, self._ring)
        self._pending: dict[int, Pending] = {}
        self._ready: deque[tuple[int, int]] = deque()  # (request id, place in the ring)
        self._last_put = time.monotonic()
        self.idle_s = 0.0  # time that poll waited for images with nothing in the slots
        self.starved_s = 0.0  # and that part of its time for which slots were free, and too few images decoded

    def want(self) -> int:
        return self.pool.room()

    def put(self, request: Request) -> None:
        check_put(request, self._pending, self.want())
        self.pool.put(request.id, request.image or b"")
        self._pending[request.id] = Pending(request, self.book.names(request.key))
        self._last_put = time.monotonic()

    def poll(self, timeout: float) -> list[Caption]:
        """Fill free slots with decoded images and write one token of every caption, until some are finished.

        Waits up to `timeout` seconds for the first one; 0: one step. Where memory does not suffice, the engine goes on
        with fewer slots, and what was in flight begins again.
        """
        deadline = time.monotonic() + timeout
        begun = time.monotonic()
        while True:
            done = self._collect(0.0)
            full = self._may_fill() or not self.generator.room()
            free = 0.0 if full else len(self.generator.free) / self.generator.shapes.slots
            try:
                if self._may_fill():
                    self._fill()
                done += [c for job, ids in self.generator.step() if (c := self._finish(job, ids))]
            except torch.OutOfMemoryError as error:
                self._shrink(error)
            now = time.monotonic()
            self.starved_s += free * (now - begun)  # a step costs the same for all of its slots as for a few
            begun = now
            if done or now >= deadline:
                return done
            if not self.generator.busy() and not self._may_fill():
                if not self._pending:
                    return done
                done = self._collect(min(0.02, deadline - now))
                begun = time.monotonic()
                self.idle_s += begun - now
                self.starved_s += begun - now
                if done:
                    return done

    def close(self) -> None:
        self.pool.close()
        self._pending.clear()
        self._ready.clear()
        del self.generator

    def _collect(self, timeout: float) -> list[Caption]:
        """Take images from the decode pool; those that failed are captions with a reason."""
        failed = []
        for image in self.pool.poll(timeout):
            if not image.reason:
                self._pending[image.id].note = image.note
                self._ready.append((image.id, image.place))
                continue
            self.pool.release(image.place)
            del self._pending[image.id]
            failed.append(Caption(image.id, reason=image.reason, transient=image.transient, detail=image.detail))
        return failed

    def _may_fill(self) -> bool:
        """A full micro-batch, or what there is when nothing more is coming."""
        if not self._ready or not self.generator.room():
            return False
        if len(self._ready) >= self.generator.shapes.micro_batch:
            return True
        return not self.pool.waiting and time.monotonic() - self._last_put >= self.config.partial_wait_s

    def _fill(self) -> None:
        batch = [self._ready.popleft() for _ in range(min(len(self._ready), self.generator.shapes.micro_batch))]
        images = [Image(self.pool.ring[place], self._texts(self._pending[id])) for id, place in batch]
        prefix = self.generator.shapes.prefix
        try:
            # A column before the image may have made one token of the prefix's last and its own first characters.
            for prefixed in (True, False):
                rows = [i for i in images if (tuple(i.texts[0].ids[: len(prefix)]) == prefix) == prefixed]
                if rows:
                    self.generator.fill(rows, prefixed=prefixed)
        finally:
            for _, place in batch:
                self.pool.release(place)

    def _texts(self, pending: Pending) -> list[Text[_Job]]:
        request, texts = pending.request, []
        for name in pending.names:
            prompt = self.book.prompt(name, request.texts, request.key)
            random_numbers = self.sampler.random_numbers(self.config.seed, request.key, name, self.config.max_tokens)
            texts.append(Text(_Job(pending, prompt), prompt.ids, prompt.max_tokens, random_numbers))
        return texts

    def _finish(self, job: _Job, ids: list[int]) -> Caption | None:
        prompt = job.prompt
        caption = job.pending.write(prompt.format, ids, prompt.max_tokens, self.checkpoint, self.config.trim)
        if caption:
            del self._pending[caption.id]
        return caption

    def _shrink(self, error: Exception) -> None:
        """After running out of memory: fewer slots, and all captions in flight again from their start."""
        slots = fewer_slots(self.generator.shapes)
        log.warning("out of memory (%s): going on with %d slots", str(error).splitlines()[0], slots)
        for _, place in self._ready:
            self.pool.release(place)
        self._ready.clear()
        self.generator.reset(replace(self.generator.shapes, slots=slots))
        gpu.release_memory()
        # The pool is started anew as well: what it holds belongs to requests that are put again.
        self.pool.close()
        self.pool = DecodePool.of(self.config, self.checkpoint.geometry, max(self._ring, len(self._pending)))
        for id, pending in self._pending.items():
            pending.captions.clear()
            self.pool.put(id, pending.request.image or b"")


def build_generator(
    model: Any,
    shapes: Shapes,
    sampler: Sampler,
    config: CaptionerConfig,
    device: torch.device,
    dtype: torch.dtype,
    normalise: Normalisation | None = None,
    size: int = 0,
) -> Generator[Any]:
    """The generator of a model: with the shapes' slots on CPUs, with as many as the memory holds on GPUs."""
    options = {
        "fp8": config.precision == "fp8",
        "kv_fp8": config.kv_precision == "fp8",
        "cuda_graph": config.cuda_graph,
    }
    if device.type != "cuda":
        return Generator(model, shapes, sampler, normalise, size, device, dtype, **options)
    # Weights first, with a few slots; then as many slots as the rest of the memory holds.
    trial = replace(shapes, slots=shapes.micro_batch * shapes.texts)
    generator: Generator[Any] = Generator(model, trial, sampler, normalise, size, device, dtype, **options)
    fit_slots_to_memory(generator, shapes, config)
    return generator


def check_precision(config: CaptionerConfig, device: torch.device) -> None:
    """Raise UserError where the device has no fp8 matrix products (they run, slowly, on CPUs for tests)."""
    wanted = "fp8" in (config.precision, config.kv_precision)
    if wanted and not gpu.has_fp8(device):
        raise UserError(
            f"captioner.precision and kv_precision = 'fp8': {gpu.name(device)} has no fp8; use bf16 and auto."
        )


def make_shapes(checkpoint: Checkpoint, config: CaptionerConfig, device: torch.device) -> Shapes:
    """The shapes that fit the prompts; slots on CPUs (on GPUs memory decides)."""
    book = checkpoint.book
    prefix = common_prefix(book)
    texts = config.most()
    features = image_tokens(checkpoint.config)
    if texts > 1 and any(book.prompt(name).ids[len(prefix)] != book.image_token_id for name in book.formats):
        raise UserError(
            "captioner.formats = 'all', or samples above 1: the prompts differ before the image, so that its work "
            "cannot be shared. Put the image first in captioner.template, or use formats=choose and samples=1."
        )
    micro_batch = config.micro_batch or (4 if device.type == "cpu" else 32)
    slots = config.slots or (16 if device.type == "cpu" else 256)
    return Shapes(
        micro_batch=micro_batch,
        slots=max(slots, micro_batch * texts),
        max_tokens=config.max_tokens,
        prefix=prefix,
        width=max(book.length(name) for name in book.formats),
        image_token=book.image_token_id,
        eos=checkpoint.eos,
        shared=len(prefix) + features if texts > 1 else 0,
        texts=texts,
    )


def common_prefix(book: PromptBook) -> tuple[int, ...]:
    """Tokens that every prompt of a captioner starts with: up to the image at most, or to the last token but one."""
    prompts = book.probes()
    shortest = min(prompts, key=len)
    stop = shortest.index(book.image_token_id) if book.image_tokens else len(shortest) - 1
    same = next((i for i in range(stop) if any(ids[i] != shortest[i] for ids in prompts)), stop)
    return tuple(shortest[:same])


def fitting_slots(generator: Generator[Any], share: float) -> int:
    """How many slots the free memory of the GPU holds beside a fill and a step, measured by running both."""
    device = generator.device
    passes = gpu.peak_memory(device, lambda: warm_up(generator))
    gpu.release_memory()
    free = gpu.free_memory(device)
    keys = generator.decoder.keys
    each = 2 * keys.element_size() * keys[:, 0].numel()
    # The decode step's activations grow with the slots: logits in the widest of its types, twice, dominate.
    each += 12 * generator.decoder.head.shape[0]
    slots = int((free * share - passes) / each)
    slots = min(_MOST_SLOTS, slots // 16 * 16)
    return max(slots, generator.shapes.micro_batch * generator.shapes.texts)


def fit_slots_to_memory(generator: Generator[Any], shapes: Shapes, config: CaptionerConfig) -> None:
    """Give the generator as many slots as fit. Where memory runs out: fewer slots, then, unless the settings name
    one, half the micro-batch. MemoryError where nothing fits."""
    slots = shapes.slots if config.slots else None
    while True:
        try:
            if slots is None:
                generator.reset(replace(shapes, slots=shapes.micro_batch * shapes.texts))
                slots = fitting_slots(generator, config.memory_share)
            generator.reset(replace(shapes, slots=slots))
            warm_up(generator)
        except torch.OutOfMemoryError:
            try:
                slots = fewer_slots(generator.shapes)
            except MemoryError:
                if config.micro_batch or shapes.micro_batch == 1:
                    raise
                shapes = replace(shapes, micro_batch=shapes.micro_batch // 2)
            log.warning(
                "out of memory while warming up: trying %d images, %s slots", shapes.micro_batch, slots or "fewer"
            )
            gpu.release_memory()
        else:
            log.info("captioning %d images at a time in %d slots", shapes.micro_batch, slots)
            return


def fewer_slots(shapes: Shapes) -> int:
    """Three quarters of the slots; MemoryError where a micro-batch no longer fits."""
    slots = shapes.slots * 3 // 4
    slots = slots // 8 * 8 if slots >= 32 else slots
    if slots < shapes.micro_batch * shapes.texts:
        raise MemoryError(
            f"The captioner does not fit beside {shapes.slots} slots and micro-batches of {shapes.micro_batch} images. "
            "Lower captioner.micro_batch or captioner.max_tokens, or free the device for it."
        )
    return slots


def warm_up(generator: Generator[Any]) -> None:
    """A full fill and two steps on grey images: compiles kernels, captures the graph, touches all memory."""
    import numpy as np

    shapes, size = generator.shapes, generator.image_size
    ids = [*shapes.prefix, *[shapes.image_token] * (shapes.shared - len(shapes.prefix) if shapes.shared else 0)]
    if not shapes.shared and generator.encoder is not None:
        features = generator.encoder(torch.zeros(1, 3, size, size, device=generator.device, dtype=generator.dtype))
        ids += [shapes.image_token] * features.shape[1]
    ids += [0] * (shapes.width - len(ids))
    random_numbers = torch.zeros(shapes.max_tokens)
    pixels = np.full((size, size, 3), 127, np.uint8) if generator.encoder is not None else None
    images = [
        Image(pixels, [Text(None, ids, 2, random_numbers) for _ in range(shapes.texts)])
        for _ in range(shapes.micro_batch)
    ]
    generator.fill(images)
    while generator.busy():
        generator.step()
    gpu.synchronise(generator.device)
