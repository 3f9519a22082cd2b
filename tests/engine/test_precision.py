"""Lower precisions run end to end on a CPU (slowly), change little, and say how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.random_captioner import Shape, photo
from hpc.base.errors import UserError
from recap.engine import CaptionerConfig, Request, load_engine
from recap.engine.agreement import compare, read_images
from recap.engine.checkpoint import open_checkpoint
from recap.engine.decode import decode
from recap.engine.generator import Generator, Image, Shapes, Text
from recap.engine.native import NativeEngine, check_precision, common_prefix
from recap.engine.sampling import Sampler
from tests.engine.conftest import drive

DEMO = Path(__file__).parents[2] / "recap" / "demo"


@pytest.mark.parametrize("capability,fits", [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_refused_where_the_gpu_has_none(
    capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An A100 has no e4m3: said before any weight is loaded."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    gpu = torch.device("cuda", 0)
    check_precision(CaptionerConfig(model="m", precision="bf16"), gpu)
    both: list[dict[str, Any]] = [{"precision": "fp8"}, {"precision": "bf16", "kv_precision": "fp8"}]
    for changes in both:
        config = CaptionerConfig(model="m", **changes)
        if fits:
            check_precision(config, gpu)
        else:
            with pytest.raises(UserError, match="NVIDIA A100 has no fp8; use bf16 and auto"):
                check_precision(config, gpu)


def test_agreement_orders_the_precisions(tiny: Callable[..., Path]) -> None:
    """The same precision agrees wholly; bf16 nearly; fp8 and an fp8 cache less."""
    base = CaptionerConfig(model=str(tiny()), max_tokens=12, micro_batch=4, slots=8, decode_workers=0)
    images = [photo(i) for i in range(12)] + [b"junk"]
    same = compare(base, base, images, "cpu")
    assert (same.images, same.identical, same.top1, same.divergence) == (12, 1.0, 1.0, 0.0)
    bf16 = compare(base, replace(base, precision="bf16"), images, "cpu")
    fp8 = compare(base, replace(base, precision="fp8", kv_precision="fp8"), images, "cpu")
    assert 0 < bf16.divergence < fp8.divergence < 2
    assert bf16.top1 > fp8.top1 > 0.6 and fp8.equal_words <= bf16.equal_words <= 1


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"kv_precision": "fp8"}, {"precision": "bf16"}])
def test_lower_precisions_do_not_depend_on_neighbours(changes: dict[str, Any], tiny: Callable[..., Path]) -> None:
    config = replace(CaptionerConfig(model=str(tiny()), max_tokens=10, micro_batch=2, slots=6), **changes)
    requests = [Request(i, photo(i), key=str(i)) for i in range(14)]
    found = []
    for order in (requests, requests[::-1]):
        engine = load_engine(config)
        found.append(drive(engine, order))
        engine.close()
    assert found[0] == found[1] and len({caption.text for caption in found[0].values()}) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [Shape(), Shape(hidden=512, heads=4, kv_heads=2, head_dim=128, ffn=1024)])
def test_gpu_tokens_equal_the_cpu_and_graphs_change_nothing(shape: Shape, tiny: Callable[..., Path]) -> None:
    """fp32 on a GPU through the Triton kernels and a CUDA graph, against fp32 on the CPU; then without the graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    config = CaptionerConfig(model=str(tiny(shape)), max_tokens=24, micro_batch=4, slots=8, precision="fp32")
    requests = [Request(i, photo(i), key=str(i)) for i in range(60)]
    found = []
    for device, graph in (("cuda", True), ("cuda", False), ("cpu", False)):
        engine = load_engine(replace(config, cuda_graph=graph), device)
        found.append(drive(engine, requests))
        engine.close()
    assert found[0] == found[1]
    assert sum(found[0][i] == found[2][i] for i in range(60)) >= 57  # rounding decides near-ties


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_sizes_itself_and_lower_precisions_agree(tiny: Callable[..., Path]) -> None:
    shape = Shape(hidden=512, heads=4, kv_heads=2, head_dim=128, ffn=1024)
    base = CaptionerConfig(model=str(tiny(shape)), max_tokens=24, micro_batch=4, slots=16)
    engine = load_engine(replace(base, slots=None), "cuda")
    assert isinstance(engine, NativeEngine) and engine.generator.shapes.slots > 64
    engine.close()
    images = [photo(i) for i in range(24)]
    full = replace(base, precision="fp32")
    assert compare(full, replace(base, precision="bf16"), images, "cuda").top1 > 0.95
    if torch.cuda.get_device_capability() >= (8, 9):
        assert compare(full, replace(base, precision="fp8", kv_precision="fp8"), images, "cuda").top1 > 0.7


class Forced(Sampler):
    """Writes given texts, and keeps the logits from which they would have been chosen."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "logits", [])

    def choose(self, logits: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        self.logits.append(logits.float())  # type: ignore[attr-defined]
        # On GPUs the host learns of the end one step late.
        return self.tokens[:, min(len(self.logits), self.tokens.shape[1]) - 1]  # type: ignore[attr-defined]


@torch.inference_mode()
def teacher_forced(device: str, dtype: torch.dtype, images: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """Logits [images, tokens, vocabulary] of the shipped captioner, given the same texts (transformers' greedy ones in
    fp32): the engine's in `dtype`, transformers' in `dtype`, and transformers' in fp32."""
    checkpoint = open_checkpoint(CaptionerConfig(model=str(DEMO / "captioner"), max_tokens=tokens))
    files = list(read_images(sorted((DEMO / "flags").glob("*.tar")), images))
    pixels = [decode(data, checkpoint.geometry) for data in files]
    prompt = checkpoint.book.prompt(next(iter(checkpoint.book.formats))).ids
    models = {
        kind: AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=kind).to(device).eval()
        for kind in {dtype, torch.float32}
    }

    def forward(kind: torch.dtype, written: torch.Tensor) -> torch.Tensor:
        ids = torch.cat([torch.tensor([prompt] * images, device=device), written], 1)
        inputs = checkpoint.normalise(torch.from_numpy(np.stack(pixels)).to(device), kind)
        return models[kind](input_ids=ids, pixel_values=inputs).logits[:, len(prompt) - 1 :].float()

    written = torch.zeros(images, 0, dtype=torch.long, device=device)
    for _ in range(tokens):
        written = torch.cat([written, forward(torch.float32, written)[:, -1:].argmax(-1)], 1)
    sampler = Forced(written)
    shapes = Shapes(
        micro_batch=images, slots=images, max_tokens=tokens, prefix=common_prefix(checkpoint.book), width=len(prompt),
        image_token=checkpoint.book.image_token_id, eos=(),
    )  # fmt: skip
    generator: Generator[int] = Generator(
        models[dtype], shapes, sampler, checkpoint.normalise, checkpoint.geometry.size, torch.device(device), dtype,
        cuda_graph=False,
    )  # fmt: skip
    zeros = torch.zeros(tokens)
    generator.fill([Image(each, [Text(i, prompt, tokens, zeros)]) for i, each in enumerate(pixels)])
    found: dict[int, list[int]] = {}
    while generator.busy():
        found.update(generator.step())
    assert [found[i] for i in range(images)] == written.tolist()
    ours = torch.stack(sampler.logits[:tokens], 1)  # type: ignore[attr-defined]
    return ours, *(forward(kind, written[:, :-1]) for kind in (dtype, torch.float32))


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative error over all positions, logits centred (a constant changes no probability)."""
    ours, theirs = (x.double() - x.double().mean(-1, keepdim=True) for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


GPU = pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_teacher_forced_logits_equal_transformers(device: str) -> None:
    """fp32: rounding apart. bf16: as near to fp32 as transformers' own bf16, and the same best token wherever the
    margin between transformers' best two is above what bf16 changes."""
    torch.backends.cuda.matmul.allow_tf32 = False
    ours, theirs, _ = teacher_forced(device, torch.float32, 24, 16)
    assert distance(ours, theirs) < (1e-5 if device == "cpu" else 1e-4) and torch.equal(
        ours.argmax(-1), theirs.argmax(-1)
    )
    ours, theirs, exact = teacher_forced(device, torch.bfloat16, 24, 16)
    noise = distance(theirs, exact)
    best = theirs.topk(2, -1).values
    margin, changed = best[..., 0] - best[..., 1], (theirs - exact).abs().amax(-1)
    clear = margin > 2 * changed
    same = ours.argmax(-1) == theirs.argmax(-1)
    assert 0 < noise < 0.05 and distance(ours, exact) < 1.5 * noise and distance(ours, theirs) < 2 * noise
    assert clear.float().mean() > 0.8 and same[clear].all()
