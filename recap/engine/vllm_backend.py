"""vLLM as a captioning engine: its asynchronous engine in this process, with a bounded window of requests.

Images are decoded here to the exact square that the other engines see, so that vLLM's own resizing has nothing to do.

    python -m recap.engine.vllm_backend FOLDER TARGET      a copy of a checkpoint with the weight names that vLLM reads
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.captions import make_caption
from recap.engine.checkpoint import open_checkpoint
from recap.engine.decode import decode_noted
from recap.engine.interface import Caption, Request
from recap.engine.prompts import Prompt
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import choose_dtype

_TOWER = ".vision_tower."  # followed by "vision_model." in the names that vLLM reads


class VllmEngine(AsynchronousEngine):
    """One AsyncLLM on the device that CUDA_VISIBLE_DEVICES names."""

    def __init__(self, config: CaptionerConfig, device: str) -> None:
        try:
            # By name: vLLM is no dependency, and type checkers need not have it.
            self._vllm = importlib.import_module("vllm")
            asynchronous = importlib.import_module("vllm.v1.engine.async_llm")
            self._parameters = importlib.import_module("vllm.sampling_params")
        except ImportError as error:
            raise ValueError(
                f"captioner.backend = 'vllm': vLLM cannot be imported ({error}). Install it in this environment, "
                "or use backend=native, or backend=openai with a vLLM server."
            ) from error
        self.config, self.checkpoint = config, open_checkpoint(config)
        check_names(self.checkpoint.folder)
        self.book = self.checkpoint.book
        width = max(self.book.length(name) for name in self.book.formats)
        dtype = choose_dtype(config.precision, torch.device(device))
        arguments = self._vllm.AsyncEngineArgs(
            model=str(self.checkpoint.folder),
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=width + config.max_tokens,
            max_num_seqs=config.slots or 256,
            gpu_memory_utilization=config.memory_share,
            limit_mm_per_prompt={"image": 1},
            # Every image is another one: caches would only cost hashing.
            mm_processor_cache_gb=0,
            enable_prefix_caching=False,
            enforce_eager=not config.cuda_graph,
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
        loop = asyncio.get_running_loop()
        try:
            pixels, note = await loop.run_in_executor(self._threads, self._decode, request.image)
        except BadImage as error:
            return Caption(request.id, reason=error.reason, detail=error.detail)
        (name,) = self.book.names(request.key)
        prompt = self.book.prompt(name, request.alt)
        ids = await self._generate(request, prompt, Image.fromarray(pixels))
        tokenizer, eos = self.checkpoint.tokenizer, self.checkpoint.eos
        made = make_caption(tokenizer, request.id, ids, eos, prompt.max_tokens, self.config.trim, name)
        return replace(made, note=note)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _decode(self, data: bytes) -> tuple[np.ndarray, str]:
        encoded = EncodedImage(data, self.config.max_pixels)
        with self._memory.lent(encoded.cost):
            return decode_noted(encoded, self.checkpoint.geometry, self.config.decode == "fast")

    async def _generate(self, request: Request, prompt: Prompt, image: Image.Image) -> list[int]:
        at = prompt.ids.index(self.book.image_token_id)
        # vLLM repeats the image's token itself.
        ids = prompt.ids[: at + 1] + prompt.ids[at + self.book.image_tokens :]
        number = f"{request.id}-{next(self._numbers)}"
        inputs = {"prompt_token_ids": ids, "multi_modal_data": {"image": image}}
        answers = [a async for a in self._engine.generate(inputs, self._sampling(request, prompt), number)]
        return list(answers[-1].outputs[0].token_ids)

    def _sampling(self, request: Request, prompt: Prompt) -> Any:
        config = self.config
        options: dict[str, Any] = {"temperature": 0.0}
        if config.decoding == "sample":
            digest = hashlib.blake2b(f"{config.seed}\0{request.key}".encode(), digest_size=4).digest()
            options = {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "seed": int.from_bytes(digest, "little"),
            }
        return self._vllm.SamplingParams(
            max_tokens=prompt.max_tokens,
            stop_token_ids=list(self.checkpoint.eos),
            ignore_eos=True,  # the end tokens are those above, and no others
            detokenize=False,
            output_kind=self._parameters.RequestOutputKind.FINAL_ONLY,
            **options,
        )


def check_names(folder: Path) -> None:
    """Raise ValueError for weight names that vLLM does not read (transformers 5 writes them)."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            flat = any(_vllm_name(name) != name for name in file.keys())  # noqa: SIM118 - not a dictionary
        if flat:
            raise ValueError(
                f"{folder}: vLLM does not read the weight names of transformers 5. Make a copy that both read: "
                f"python -m recap.engine.vllm_backend {folder} TARGET"
            )


def rename(folder: Path, target: Path) -> None:
    """Copy a checkpoint, with `vision_tower.vision_model.` in its weight names; transformers reads it as before."""
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix != ".safetensors":
            text = path.read_bytes()
            if path.name.endswith(".index.json"):
                text = text.replace(b"vision_tower.", b"vision_tower.vision_model.")
                text = text.replace(b"vision_model.vision_model.", b"vision_model.")
            (target / path.name).write_bytes(text)
            continue
        with safe_open(path, "pt") as file:
            tensors = {_vllm_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, target / path.name, metadata=file.metadata())
    shutil.copymode(folder, target)


def _vllm_name(name: str) -> str:
    head, tower, tail = f".{name}".partition(_TOWER)
    if not tower or tail.startswith("vision_model."):
        return name
    return f"{head}{tower}vision_model.{tail}".removeprefix(".")


if __name__ == "__main__":
    rename(Path(sys.argv[1]), Path(sys.argv[2]))
