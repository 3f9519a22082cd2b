"""transformers' plain `generate` for any model that sees images and writes: the checkpoint's own processor and chat
template decide on pixels and tokens, dynamic resolution and tiles included.

Images are prepared in threads ahead of the model. Rows whose inputs have one shape share a pass of a fixed number of
rows (the last one repeated), so that a text never depends on its batch neighbours.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hpc.base.errors import UserError
from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.buckets import Buckets, width_of
from recap.engine.captions import Pending
from recap.engine.checkpoint import open_vision_checkpoint
from recap.engine.holding import Holding
from recap.engine.interface import REFUSED, TOO_LONG, Caption, Request
from recap.engine.prompts import Prompt
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype, generate, plain

Inputs = dict[str, torch.Tensor]  # of one row, as the processor returns them: the first dimension is the row's parts


@dataclass
class _Row:
    """One text to write."""

    pending: Pending
    prompt: Prompt
    inputs: Inputs


class TransformersVisionEngine(Holding):
    """See `recap.engine.interface.Engine`."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        self.config, self.device = config, torch.device(device)
        self.checkpoint = open_vision_checkpoint(config)
        self.book, self.sampler = self.checkpoint.book, Sampler.of(config)
        # Texts of varying length are filled up to a few widths; else the image alone decides on the length.
        self._varies = any(form.columns() or form.examples for form in self.book.formats.values())
        self._one_at_a_time = threading.Lock()  # a tokenizer must not be used by two threads at once
        self._warm_up()
        self.dtype = choose_dtype(config.precision, self.device)
        model = AutoModelForImageTextToText.from_pretrained(self.checkpoint.folder, dtype=self.dtype)
        self.model = plain(model.to(self.device))
        self.batch = config.micro_batch or (4 if self.device.type == "cpu" else 8)
        super().__init__(config.queue or 8 * self.batch)
        self._rows: Buckets[tuple[Any, ...], _Row] = Buckets(self.batch, 4 * self._most, config.partial_wait_s)
        self._memory = Memory(int(config.decode_memory_gb * 2**30))
        self._threads = ThreadPoolExecutor(max_workers=max(1, config.decode_workers))
        self._prepared: queue.SimpleQueue[list[_Row] | Caption | Exception] = queue.SimpleQueue()
        self._preparing = 0

    def put(self, request: Request) -> None:
        pending = self.hold(request)
        self._preparing += 1
        self._threads.submit(self._prepare_safely, pending)

    def poll(self, timeout: float) -> list[Caption]:
        deadline = time.monotonic() + timeout
        while True:
            done = self._collect()
            full = self.want() <= 0 and not self._preparing
            if (key := self._rows.ready(pressing=full, more=self._preparing > 0)) is not None:
                done += self._generate(self._rows.take(key))
            if done or not self._pending or time.monotonic() >= deadline:
                return done
            time.sleep(0.001)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._rows.clear()
        self._pending.clear()
        del self.model

    # --- images to inputs ---------------------------------------------------------------------

    def _prepare_safely(self, pending: Pending) -> None:
        try:
            self._prepared.put(self._prepare(pending))
        except Exception as error:  # noqa: BLE001 - whatever it is, poll raises it
            self._prepared.put(error)

    def _prepare(self, pending: Pending) -> list[_Row] | Caption:
        """A row for each answer that a request gets; the caption with a reason where there can be none."""
        request = pending.request
        try:
            encoded = EncodedImage(request.image or b"", self.config.max_pixels)
            with self._memory.reserved(encoded.cost):
                image, pending.note = encoded.rgb(), encoded.note
                rows = [self._row(pending, name, image) for name in pending.names]
        except BadImage as error:
            return Caption(request.id, reason=error.reason, detail=error.detail)
        context = self.checkpoint.context
        longest = max(row.inputs["input_ids"].shape[1] + row.prompt.max_tokens for row in rows)
        if context is not None and longest > context:
            detail = f"{longest:,} tokens with the answer, the model's context is {context:,}"
            return Caption(request.id, reason=TOO_LONG, detail=detail)
        return rows

    def _row(self, pending: Pending, name: str, image: Image.Image) -> _Row:
        request = pending.request
        prompt = self.book.prompt(name, request.texts, request.key)
        try:
            inputs = self._inputs(name, self.book.text(name, request.texts, request.key), image)
        except MemoryError:
            raise
        except Exception as error:  # a processor's own refusals (Qwen: aspect ratios above 200) have no common class
            raise BadImage(REFUSED, f"{type(error).__name__}: {error}") from error
        return _Row(pending, prompt, self._fill_up(inputs) if self._varies else inputs)

    def _inputs(self, name: str, text: str, image: Image.Image) -> Inputs:
        """What the processor makes of one text and its image, as its `apply_chat_template` calls it."""
        # A text that begins with BOS would get another; otherwise the processor knows best.
        special = {"add_special_tokens": False} if self.book.opened(name) else {}
        with self._one_at_a_time:
            found = self.checkpoint.processor(images=[[image]], text=[text], return_tensors="pt", **special)
        return dict(found)

    def _fill_up(self, inputs: Inputs) -> Inputs:
        """Inputs with their tokens filled up on the left to one of a few widths."""
        ids = inputs["input_ids"]
        more = width_of(ids.shape[1]) - ids.shape[1]
        filled = {
            name: torch.nn.functional.pad(value, (more, 0)) if value.shape == ids.shape else value
            for name, value in inputs.items()
        }
        filled["input_ids"][:, :more] = self.checkpoint.tokenizer.pad_token_id or self.checkpoint.eos[0]
        return filled

    def _warm_up(self) -> None:
        """Every format with a grey image, so that what suits no image is said before the first, not of each.

        Raises:
            UserError: the processor refuses it.
        """
        image = Image.new("RGB", (224, 224), (127, 127, 127))
        for name in self.book.formats:
            text = self.book.text(name)
            try:
                self._inputs(name, text, image)
            except Exception as error:
                raise UserError(
                    f"{self.checkpoint.folder}: its processor cannot take an image with the prompt of format {name!r} "
                    f"({type(error).__name__}: {error}). Correct captioner.template, or the files of the processor."
                ) from error

    # --- inputs to captions -------------------------------------------------------------------

    def _collect(self) -> list[Caption]:
        """Rows that are prepared into their buckets; requests without any as captions with a reason."""
        failed: list[Caption] = []
        while not self._prepared.empty():
            found = self._prepared.get()
            self._preparing -= 1
            if isinstance(found, Exception):
                raise found
            if isinstance(found, Caption):
                del self._pending[found.id]
                failed.append(found)
                continue
            for row in found:
                self._rows.add(tuple((n, tuple(v.shape), v.dtype) for n, v in sorted(row.inputs.items())), row)
        return failed

    @torch.inference_mode()
    def _generate(self, rows: list[_Row]) -> list[Caption]:
        """One pass of `batch` rows of one shape."""
        config, sampler = self.config, self.sampler
        parts = [rows[min(at, len(rows) - 1)] for at in range(self.batch)]  # places without a row repeat the last
        inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in rows[0].inputs}
        inputs = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        numbers = [
            sampler.random_numbers(config.seed, row.pending.request.key, row.prompt.format, config.max_tokens)
            for row in parts
        ]
        new = generate(
            self.model, sampler, torch.stack(numbers), self.checkpoint.eos, config.max_tokens, config.beams, **inputs
        )
        made = zip(rows, new[: len(rows)], strict=True)
        return [caption for row, ids in made if (caption := self.finish(row, ids))]
