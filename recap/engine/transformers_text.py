"""transformers' plain `generate` for models of texts: batches of one number of rows, padded on the left to one of a few
widths. Right for any causal language model, and the one engine that searches with beams."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from recap.engine.buckets import Buckets, width_of
from recap.engine.captions import Pending
from recap.engine.checkpoint import open_text_checkpoint
from recap.engine.holding import Holding
from recap.engine.interface import TOO_LONG, Caption, Request
from recap.engine.native_text import load_language_model
from recap.engine.prompts import Prompt
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype, generate, plain


@dataclass
class _Job:
    pending: Pending
    prompt: Prompt


class TransformersTextEngine(Holding):
    """See `recap.engine.interface.Engine`."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        self.config, self.device = config, torch.device(device)
        self.checkpoint = open_text_checkpoint(config)
        self.book, self.sampler = self.checkpoint.book, Sampler.of(config)
        dtype = choose_dtype(config.precision, self.device)
        self.model = plain(load_language_model(self.checkpoint, dtype).to(self.device))
        self.batch = config.micro_batch or (8 if self.device.type == "cpu" else 32)
        super().__init__(config.queue or 8 * self.batch)
        self._rows: Buckets[int, _Job] = Buckets(self.batch, 4 * self._most, config.partial_wait_s)
        self._refused: list[Caption] = []

    def put(self, request: Request) -> None:
        pending = self.hold(request)
        jobs = [_Job(pending, self.book.prompt(name, request.texts, request.key)) for name in pending.names]
        context = self.checkpoint.context
        longest = max(len(job.prompt.ids) + job.prompt.max_tokens for job in jobs)
        if context is not None and longest > context:
            detail = f"{longest:,} tokens with the answer, the model's context is {context:,}"
            del self._pending[request.id]
            self._refused.append(Caption(request.id, reason=TOO_LONG, detail=detail))
            return
        for job in jobs:
            self._rows.add(width_of(len(job.prompt.ids)), job)

    def poll(self, timeout: float) -> list[Caption]:
        deadline = time.monotonic() + timeout
        while True:
            done, self._refused = self._refused, []
            if (width := self._rows.ready(pressing=self.want() <= 0)) is not None:
                done += self._generate(self._rows.take(width), width)
            if done or not self._pending or time.monotonic() >= deadline:
                return done
            time.sleep(0.001)  # a partial batch waits for what may still come

    def close(self) -> None:
        self._rows.clear()
        self._pending.clear()
        del self.model

    @torch.inference_mode()
    def _generate(self, jobs: list[_Job], width: int) -> list[Caption]:
        ids = torch.zeros(self.batch, width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        random_numbers = torch.zeros(self.batch, self.config.max_tokens)
        for row in range(self.batch):
            job = jobs[min(row, len(jobs) - 1)]  # rows without a job repeat the last prompt
            length = len(job.prompt.ids)
            ids[row, -length:], mask[row, -length:] = torch.tensor(job.prompt.ids), 1
            random_numbers[row] = self.sampler.random_numbers(
                self.config.seed, job.pending.request.key, job.prompt.format, self.config.max_tokens
            )
        new = generate(
            self.model, self.sampler, random_numbers, self.checkpoint.eos, self.config.max_tokens, self.config.beams,
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device),
        )  # fmt: skip
        made = zip(jobs, new[: len(jobs)], strict=True)  # rows behind the jobs fill up the batch
        return [caption for job, row in made if (caption := self.finish(job, row))]
