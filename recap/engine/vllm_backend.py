"""vLLM as a captioning engine: its asynchronous engine in this process, with a bounded window of requests.

A LLaVA checkpoint's images are decoded here to the exact square that the other engines see, so that vLLM's own resizing
has nothing to do. Other models get the whole image, which vLLM prepares by the model's own processor.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from hpc.base.errors import UserError
from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.captions import Pending, make_caption
from recap.engine.checkpoint import (
    Checkpoint,
    TextCheckpoint,
    VisionCheckpoint,
    is_llava,
    open_checkpoint,
    open_text_checkpoint,
    open_vision_checkpoint,
)
from recap.engine.decode import decode_noted
from recap.engine.formats import request_seed
from recap.engine.interface import REFUSED, TOO_LONG, Caption, Request
from recap.engine.managed_server import gpus_seen
from recap.engine.prompts import Prompt
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype
from recap.engine.vllm_weights import check_names
from recap.model_files import model_folder


class VllmEngine(AsynchronousEngine):
    """One AsyncLLM on the device that CUDA_VISIBLE_DEVICES names."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        try:
            # By name: vLLM is no dependency, and type checkers need not have it.
            self._vllm = importlib.import_module("vllm")
            asynchronous = importlib.import_module("vllm.v1.engine.async_llm")
            self._parameters = importlib.import_module("vllm.sampling_params")
        except ImportError as error:
            raise UserError(
                f"captioner.backend = 'vllm': vLLM cannot be imported ({error}). Install it in this environment, "
                "or use backend=native, or backend=openai with a vLLM server."
            ) from error
        self.config = config
        self.checkpoint = _open(config)
        self.book = self.checkpoint.book
        self._context = None
        if isinstance(self.checkpoint, Checkpoint):
            check_names(self.checkpoint.folder)
        if self.book.bounded() and not isinstance(self.checkpoint, VisionCheckpoint):
            self._context = max(self.book.length(name) for name in self.book.formats) + config.max_tokens
        elif not isinstance(self.checkpoint, Checkpoint):
            self._context = self.checkpoint.context
        images = {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0} if config.sees else {}
        dtype = choose_dtype(config.precision, torch.device(device))
        arguments = self._vllm.AsyncEngineArgs(
            model=str(self.checkpoint.folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=self._context,
            tensor_parallel_size=gpus_seen(),
            max_num_seqs=config.slots or 256,
            gpu_memory_utilization=config.memory_share,
            # Every image is another one: caches would only cost hashing. Instructions about texts are the same.
            enable_prefix_caching=not config.sees,
            enforce_eager=not config.cuda_graph,
            **images,
        )
        self._threads = ThreadPoolExecutor(max_workers=max(1, config.decode_workers))
        self._memory = Memory(int(config.decode_memory_gb * 2**30))
        self._engine: Any = None
        self._numbers = itertools.count()
        super().__init__(config.window)

        async def build() -> Any:  # inside the loop that will use it
            return asynchronous.AsyncLLM.from_engine_args(arguments)

        self._engine = asyncio.run_coroutine_threadsafe(build(), self._loop).result()

    async def caption(self, request: Request) -> Caption:
        image, pending = None, Pending(request, self.book.names(request.key))
        if request.image is not None and self.config.sees:
            loop = asyncio.get_running_loop()
            try:
                image, pending.note = await loop.run_in_executor(self._threads, self._decode, request.image)
            except BadImage as error:
                return Caption(request.id, reason=error.reason, detail=error.detail)
        prompts = [self.book.prompt(name, request.texts, request.key) for name in pending.names]
        longest = max(len(prompt.ids) + prompt.max_tokens for prompt in prompts)
        if self._context is not None and longest > self._context:
            detail = f"{longest:,} tokens with the answer, the model's context is {self._context:,}"
            return Caption(request.id, reason=TOO_LONG, detail=detail)
        tokenizer, eos, trim = self.checkpoint.tokenizer, self.checkpoint.eos, self.config.trim
        try:
            answers = await asyncio.gather(*(self._generate(request, prompt, image) for prompt in prompts))
        except ValueError as error:  # vLLM validates a request when it is made
            if not isinstance(self.checkpoint, VisionCheckpoint):
                raise
            return Caption(request.id, reason=REFUSED, detail=f"{type(error).__name__}: {error}")
        whole = None
        for prompt, ids in zip(prompts, answers, strict=True):
            whole = pending.add(make_caption(tokenizer, request.id, ids, eos, prompt.max_tokens, trim, prompt.format))
        assert whole is not None
        return whole

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _decode(self, data: bytes) -> tuple[Image.Image, str]:
        encoded = EncodedImage(data, self.config.max_pixels)
        with self._memory.reserved(encoded.cost):
            if not isinstance(self.checkpoint, Checkpoint):
                return encoded.rgb(), encoded.note
            pixels, note = decode_noted(encoded, self.checkpoint.geometry, self.config.decode == "fast")
            return Image.fromarray(pixels), note

    async def _generate(self, request: Request, prompt: Prompt, image: Image.Image | None) -> list[int]:
        inputs: dict[str, Any] = {"prompt_token_ids": prompt.ids}
        if image is not None:
            # vLLM repeats the image's token itself.
            at = prompt.ids.index(self.book.image_token_id) if self.book.image_tokens else 0
            inputs["prompt_token_ids"] = prompt.ids[: at + 1] + prompt.ids[at + max(1, self.book.image_tokens) :]
            inputs["multi_modal_data"] = {"image": image}
        number = f"{request.id}-{next(self._numbers)}"
        answers = [a async for a in self._engine.generate(inputs, self._sampling(request, prompt), number)]
        return list(answers[-1].outputs[0].token_ids)

    def _sampling(self, request: Request, prompt: Prompt) -> Any:
        config = self.config
        options: dict[str, Any] = {"temperature": 0.0}
        if config.decoding == "sample":
            options = {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "seed": request_seed(config.seed, request.key, prompt.format),
            }
        return self._vllm.SamplingParams(
            max_tokens=prompt.max_tokens,
            stop_token_ids=list(self.checkpoint.eos),
            ignore_eos=True,  # the end tokens are those above, and no others
            detokenize=False,
            output_kind=self._parameters.RequestOutputKind.FINAL_ONLY,
            **options,
        )


def _open(config: CaptionerConfig) -> Checkpoint | VisionCheckpoint | TextCheckpoint:
    if not config.sees:
        return open_text_checkpoint(config)
    return open_checkpoint(config) if is_llava(model_folder(config.model)) else open_vision_checkpoint(config)
