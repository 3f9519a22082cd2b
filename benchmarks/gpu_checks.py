"""Stages of benchmarks/gpu.py that check: kernels against their plain twins, exactness of captions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.caption_work import compare, make_generator, make_work, run_native
from benchmarks.gpu_setting import Note, Setting
from benchmarks.timing import milliseconds
from recap import device as gpu
from recap.engine import kernels as K
from recap.engine import precision


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Within the block the engine's operations run as plain PyTorch, also on a GPU."""
    fused, K.fused = K.fused, None
    try:
        yield
    finally:
        K.fused = fused


def cases(setting: Setting) -> dict[str, tuple[Callable[[], Any], int]]:
    """Every operation of the engine at the captioner's shape: name -> (call, bytes that it has to move)."""
    shape, device, dtype = setting.shape, setting.device, torch.bfloat16
    hidden, ffn, heads, kv, dim = shape.hidden, shape.ffn, shape.heads, shape.kv_heads, shape.hidden // shape.heads
    patches = (shape.image // shape.patch) ** 2
    n, slots, start, width = setting.micro_batch, setting.slots or 256, 10, patches + 15
    span, rows = start + width + 128, setting.micro_batch * width

    def random_tensor(*size: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*size, device=device).to(of)

    x, residual, weight, gates = (
        random_tensor(rows, hidden),
        random_tensor(rows, hidden),
        random_tensor(hidden),
        random_tensor(rows, 2 * ffn),
    )
    seen, seen2 = (random_tensor(n * (patches + 1), shape.vision_hidden) for _ in range(2))
    scale, inner = random_tensor(shape.vision_hidden), random_tensor(n * (patches + 1), shape.vision_ffn)
    angles = torch.outer(torch.arange(span), 500000.0 ** -(torch.arange(0, dim, 2) / dim)).repeat(1, 2).to(device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    qkv, query = random_tensor(rows, (heads + 2 * kv) * dim), random_tensor(slots, heads, dim)
    lengths, at = torch.full((slots,), start + width + 30, device=device), torch.arange(n, device=device)
    owners, times = at.repeat_interleave(width), torch.arange(start, start + width, device=device).repeat(n)
    found: dict[str, tuple[Callable[[], Any], int]] = {
        "add_rms_norm": (lambda: K.add_rms_norm(x, residual, weight, 1e-5), 4 * 2 * x.numel()),
        "add_rms_norm fp8": (lambda: K.add_rms_norm(x, residual, weight, 1e-5, fp8=True), 7 * x.numel()),
        "swiglu": (lambda: K.swiglu(gates), 3 * gates.numel()),
        "swiglu fp8": (lambda: K.swiglu(gates, fp8=True), 5 * gates.numel() // 2),
        "quantise": (lambda: K.quantise(x), 3 * x.numel()),
        "add_layer_norm": (lambda: K.add_layer_norm(seen, seen2, scale, scale, 1e-5), 4 * 2 * seen.numel()),
        "quick_gelu": (lambda: K.quick_gelu(inner), 4 * inner.numel()),
    }
    for name, of in (("", dtype), (" fp8 cache", precision.FP8)):
        keys, values = (random_tensor(slots, kv, span, dim, of=of) for _ in range(2))
        size = keys.element_size()

        def rope(keys: torch.Tensor = keys, values: torch.Tensor = values) -> Any:
            K.rope_and_store(qkv, cos, sin, keys, values, owners, times, 0)
            return K.bits(keys)[:n], K.bits(values)[:n]

        def prefill(keys: torch.Tensor = keys, values: torch.Tensor = values) -> Any:
            return K.prefill_attention(qkv, cos, sin, keys, values, at, start, heads)

        def decode(keys: torch.Tensor = keys, values: torch.Tensor = values) -> Any:
            return K.decode_attention(query, keys, values, None, lengths)

        found["rope_and_store" + name] = (rope, rows * 2 * kv * dim * (2 + size))
        found["prefill_attention" + name] = (prefill, rows * dim * (4 * heads + 2 * kv * size))
        found["decode_attention" + name] = (decode, int(lengths.sum()) * 2 * kv * dim * size)
    return found


def difference(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected|| over all tensors; fp8 pairs are multiplied out first."""

    def flat(each: Any) -> torch.Tensor:
        if isinstance(each, torch.Tensor):
            return each.float().flatten()
        if isinstance(each[0], torch.Tensor) and each[0].dtype == precision.FP8:
            return (each[0].float() * each[1]).flatten()
        return torch.cat([flat(part) for part in each])

    right = flat(expected)
    return float((flat(found) - right).norm() / right.norm())


def kernels(setting: Setting, note: Note) -> None:
    """Each kernel at the captioner's shape: values against its twin's, time of both, bytes a second."""
    for name, (call, size) in cases(setting).items():
        try:
            with torch.inference_mode():
                ours = call()
                spent = milliseconds(call, setting.device, 20)
                with plain_operations():
                    off = difference(ours, call())
                    theirs = milliseconds(call, setting.device, 3)
            note(name, {"ms": spent, "plain_ms": theirs, "bytes_per_s": size / spent * 1e3, "difference": off})
        except Exception as error:  # noqa: BLE001 - the other kernels are still to be seen
            note(name, f"{type(error).__name__}: {str(error)[:300]}")
            note("failed", name)


def exactness(setting: Setting, note: Note) -> None:
    """A captioner that a CPU can run: the device's captions against the CPU's in fp32; in every precision, captions
    that depend neither on neighbours and order, nor on where a run began, nor on the graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu = make_work(setting.small, setting.checked, torch.device("cpu"), torch.float32)
    theirs = run_native(on_cpu, make_generator(on_cpu, 4, 8, "fp32"))
    work = replace(on_cpu, model=on_cpu.model.to(setting.device))
    backwards = replace(work, pixels=work.pixels[::-1].copy(), lengths=work.lengths[::-1].copy())
    half = work.images // 2
    rest = replace(work, pixels=work.pixels[half:], lengths=work.lengths[half:])
    fp8 = ["fp8", "fp8+kv"] if gpu.has_fp8(setting.device) else []
    for name in ("fp32", "bf16", *fp8):
        own = run_native(work, make_generator(work, 4, 8, name))
        same = {
            "order": _reversed(run_native(backwards, make_generator(work, 4, 8, name))) == own,
            "restart": _shifted(run_native(rest, make_generator(work, 4, 8, name)), half) == {
                i: tokens for i, tokens in own.items() if i >= half
            },
            "graph": run_native(work, make_generator(work, 4, 8, name, cuda_graph=False)) == own,
        }  # fmt: skip
        note(f"{name}: the same in another order, after a restart, without the graph", same)
        if not all(same.values()):
            note("failed", f"{name} captions depend on {', '.join(k for k, v in same.items() if not v)}")
        if name == "fp32":
            note("fp32 against the CPU", compare(work, own, theirs))
        else:
            equal = sum(own[i] == theirs[i] for i in own)
            note(f"{name} against fp32", {"identical": equal, "images": len(own)})


def _reversed(found: dict[int, list[int]]) -> dict[int, list[int]]:
    return {len(found) - 1 - i: tokens for i, tokens in found.items()}


def _shifted(found: dict[int, list[int]], by: int) -> dict[int, list[int]]:
    return {i + by: tokens for i, tokens in found.items()}
