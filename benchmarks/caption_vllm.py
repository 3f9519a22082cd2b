"""vLLM on the benchmark's work: the same shape, pixels, prompt and forced lengths, in one asynchronous engine.

vLLM loads from a folder and cannot take weights from memory: it gets random ones of its own (`load_format=dummy`),
which do the same arithmetic. Images arrive as pictures of the model's size; vLLM normalises them itself.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.random_captioner import Shape, make_config, make_tokenizer, write_processor


def run_vllm(
    shape: Shape, pixels: np.ndarray, ids: list[int], lengths: np.ndarray, slots: int = 256, **settings: Any
) -> dict[str, Any]:
    """Images/s with a window of three batches of requests in flight, start-up and a first batch excluded.

    settings: of vLLM's engine, instead of those here (its CPU build wants other ones: tests/engine/test_vllm.py).
    """
    vllm = importlib.import_module("vllm")
    asynchronous = importlib.import_module("vllm.v1.engine.async_llm")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(min(shape.vocabulary, 1024))
        config = make_config(shape, tokenizer)
        config.architectures, config.dtype = ["LlavaForConditionalGeneration"], "bfloat16"
        config.save_pretrained(folder)
        write_processor(shape, tokenizer, Path(folder))
        defaults = dict(
            model=folder,
            load_format="dummy",
            dtype="bfloat16",
            max_model_len=len(ids) + int(lengths.max()),
            max_num_seqs=slots,
            max_num_batched_tokens=16384,
            limit_mm_per_prompt={"image": 1},
            mm_processor_cache_gb=0,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.45,  # the benchmark's own model is still on the device
        )
        arguments = vllm.AsyncEngineArgs(**defaults | settings)
        return asyncio.run(_measure(vllm, asynchronous.AsyncLLM, arguments, pixels, ids, lengths, 3 * slots))


async def _measure(
    vllm: Any, kind: Any, arguments: Any, pixels: np.ndarray, ids: list[int], lengths: np.ndarray, window: int
) -> dict[str, Any]:
    kinds = importlib.import_module("vllm.sampling_params").RequestOutputKind
    image_token = max(set(ids), key=ids.count)  # vLLM repeats it itself
    at, features = ids.index(image_token), ids.count(image_token)
    prompt = ids[: at + 1] + ids[at + features :]
    room = asyncio.Semaphore(window)

    async def one(i: int) -> int:
        length = int(lengths[i])
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True, detokenize=False,
            output_kind=kinds.FINAL_ONLY,
        )  # fmt: skip
        async with room:
            inputs = {"prompt_token_ids": prompt, "multi_modal_data": {"image": Image.fromarray(pixels[i])}}
            answers = [answer async for answer in engine.generate(inputs, sampling, f"{i}-{time.monotonic_ns()}")]
            return len(answers[-1].outputs[0].token_ids)

    engine = kind.from_engine_args(arguments)  # inside the loop that will use it
    try:
        await asyncio.gather(*(one(i) for i in range(min(len(pixels), 64))))
        start = time.perf_counter()
        tokens = await asyncio.gather(*(one(i) for i in range(len(pixels))))
        spent = time.perf_counter() - start
    finally:
        engine.shutdown()
    assert tokens == lengths.tolist()
    return {"version": vllm.__version__, "images_per_s": len(pixels) / spent, "window": window}
