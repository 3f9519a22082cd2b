"""The native engine for models of texts: requests in, texts out, around a `Generator` without eyes.

    prompts -> rows of one width -> generator -> text

The tokens that every prompt begins with are run once, when the engine starts: a long instruction then costs a row
nothing. A row's own tokens are filled up to one of a few widths.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from recap import device as gpu
from recap.engine.buckets import Buckets, width_of
from recap.engine.captions import Pending
from recap.engine.checkpoint import TextCheckpoint, open_text_checkpoint
from recap.engine.generator import Generator, Image, Shapes, Text
from recap.engine.holding import Holding
from recap.engine.interface import Caption, Request
from recap.engine.native import build_generator, check_precision, common_prefix, fewer_slots
from recap.engine.prompts import Prompt
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype

log = logging.getLogger(__name__)

_Key = tuple[int, bool]  # width of a pass, and whether its prompts begin with the prefix


@dataclass
class _Job:
    """What a slot writes: one answer to a pending request."""

    pending: Pending
    prompt: Prompt


class NativeTextEngine(Holding):
    """Texts by this package's own decoder. See `recap.engine.interface.Engine`."""

    def __init__(self, config: CaptionerConfig, device: str, model: Any = None, shared: bool = True) -> None:
        """`model`: the loaded model, where the checkpoint has no weights. `shared`: False runs the common prefix with
        each row (benchmarks)."""
        self.config, self.device = config, torch.device(device)
        self.checkpoint = open_text_checkpoint(config, weights=model is None)
        self.book, self.sampler = self.checkpoint.book, Sampler.of(config)
        self.dtype = choose_dtype(config.precision, self.device)
        check_precision(config, self.device)
        shapes = make_text_shapes(self.checkpoint, config, self.device, shared)
        model = load_language_model(self.checkpoint, self.dtype) if model is None else model
        self.generator: Generator[_Job] = build_generator(
            model.eval(), shapes, self.sampler, config, self.device, self.dtype
        )
        del model
        shapes = self.generator.shapes
        super().__init__(config.queue or 2 * shapes.slots + 4 * shapes.micro_batch)
        self._rows: Buckets[_Key, Text[_Job]] = Buckets(shapes.micro_batch, 4 * self._most, config.partial_wait_s)
        self.starved_s = 0.0

    def put(self, request: Request) -> None:
        self._add(self.hold(request))

    def poll(self, timeout: float) -> list[Caption]:
        deadline = time.monotonic() + timeout
        while True:
            begun = time.monotonic()
            try:
                self._fill()
                # What is free for a whole pass was not filled; a step costs the same for all slots as for a few.
                free = len(self.generator.free) / self.generator.shapes.slots if self.generator.room() else 0.0
                done = [c for job, ids in self.generator.step() if (c := self.finish(job, ids))]
            except torch.OutOfMemoryError as error:
                self._shrink(error)
                done, free = [], 0.0
            self.starved_s += free * (time.monotonic() - begun)
            if done or not self._pending or time.monotonic() >= deadline:
                return done
            if not self.generator.busy():
                time.sleep(0.001)  # a partial pass waits for what may still come

    def close(self) -> None:
        self._pending.clear()
        self._rows.clear()
        del self.generator

    def _add(self, pending: Pending) -> None:
        request, prefix = pending.request, self.generator.shapes.prefix
        for name in pending.names:
            prompt = self.book.prompt(name, request.texts, request.key)
            random_numbers = self.sampler.random_numbers(self.config.seed, request.key, name, self.config.max_tokens)
            text = Text(_Job(pending, prompt), prompt.ids, prompt.max_tokens, random_numbers)
            # A column's first characters may have become one token with the prefix's last.
            prefixed = len(prompt.ids) > len(prefix) and tuple(prompt.ids[: len(prefix)]) == prefix
            start = len(prefix) if prefixed else 0
            width = min(start + width_of(len(prompt.ids) - start), self.generator.shapes.width)
            self._rows.add((width, prefixed), text)

    def _fill(self) -> None:
        while self.generator.room() and (key := self._rows.ready(pressing=self.want() <= 0)) is not None:
            width, prefixed = key
            self.generator.fill([Image(None, [text]) for text in self._rows.take(key)], width, prefixed)

    def _shrink(self, error: Exception) -> None:
        """After running out of memory: fewer slots, and all texts in flight again from their start."""
        slots = fewer_slots(self.generator.shapes)
        log.warning("out of memory (%s): going on with %d slots", str(error).splitlines()[0], slots)
        self._rows.clear()
        self.generator.reset(replace(self.generator.shapes, slots=slots))
        gpu.release_memory()
        for pending in self._pending.values():
            pending.captions.clear()
            self._add(pending)


def load_language_model(checkpoint: TextCheckpoint, dtype: torch.dtype) -> Any:
    """transformers' model: a causal one, or one that sees images and is shown none."""
    loader = AutoModelForCausalLM if checkpoint.causal else AutoModelForImageTextToText
    return loader.from_pretrained(checkpoint.folder, dtype=dtype)


def make_text_shapes(checkpoint: TextCheckpoint, config: CaptionerConfig, device: torch.device, shared: bool) -> Shapes:
    """The shapes that fit the prompts; slots on CPUs (on GPUs memory decides)."""
    book, small = checkpoint.book, device.type == "cpu"
    width = max(book.length(name) for name in book.formats)
    micro_batch = config.micro_batch or (8 if small else 32)
    slots = config.slots or (_cpu_slots(checkpoint, width + config.max_tokens) if small else 256)
    return Shapes(
        micro_batch=micro_batch,
        slots=max(slots, micro_batch),
        max_tokens=config.max_tokens,
        prefix=common_prefix(book) if shared else (),
        width=width,
        image_token=-1,
        eos=checkpoint.eos,
    )


def _cpu_slots(checkpoint: TextCheckpoint, span: int) -> int:
    """Slots on CPUs: a step reads all weights whatever it writes, so that many rows share the reading; at most 128, as
    many as have keys and values (float32) in 2 GiB."""
    language = checkpoint.config.get_text_config()
    heads = language.num_attention_heads
    dim = getattr(language, "head_dim", None) or language.hidden_size // heads
    kv_heads = getattr(language, "num_key_value_heads", None) or heads
    position = 2 * 4 * language.num_hidden_layers * kv_heads * dim
    return max(1, min(128, 2**31 // (position * span)))
