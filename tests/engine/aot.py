"""Compiles every Triton kernel of the engine for GPUs that need not be here, through the engine's own launch code, at
LLaVA-1.5's shape with LLaMA-3-8B, and says what each takes: one JSON line a kernel.

    python -m tests.engine.aot bf16 80 90 100        (fp32: minutes, its products are unrolled)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from recap.engine import kernels as K
from recap.engine import precision

warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
H, F, A, KV, D, T, M, V = 4096, 14336, 32, 8, 128, 729, 64, 1024
PATTERNS = {
    "loads of 16 bytes": r"LDG\.E\S*\.128|LDGSTS\.E\S*\.128", "narrow loads": r"LDG\.E(\.U8|\.U16|\.S8| )",
    "narrow stores": r"STG\.E\.U?(8|16)", "tensor core": r"\b[HQ]G?MMA|UTCHMMA|OMMA",
}  # fmt: skip


class Driver:
    """As much of a driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # a key of the compiled kernels' cache

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def calls(dtype: torch.dtype, fp8: bool) -> dict[str, Callable[[], Any]]:
    """Each operation as the engine makes it; the fp8 variants only where the device has e4m3."""

    def some(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=of)

    x, gates, inner, seen = some(M, H), some(M, 2 * F), some(M, 4 * V), some(M, V)
    found: dict[str, Callable[[], Any]] = {
        "first rms_norm": lambda: K.add_rms_norm(x, None, some(H), 1e-5),
        "add_rms_norm": lambda: K.add_rms_norm(x, x, some(H), 1e-5),
        "swiglu": lambda: K.swiglu(gates),
        "first layer_norm": lambda: K.add_layer_norm(seen, None, some(V), some(V), 1e-5),
        "add_layer_norm": lambda: K.add_layer_norm(seen, seen, some(V), some(V), 1e-5),
        "quick_gelu": lambda: K.quick_gelu(inner),
    }
    if fp8:
        found |= {
            "first rms_norm to fp8": lambda: K.add_rms_norm(x, None, some(H), 1e-5, fp8=True),
            "add_rms_norm to fp8": lambda: K.add_rms_norm(x, x, some(H), 1e-5, fp8=True),
            "swiglu to fp8": lambda: K.swiglu(gates, fp8=True),
            "quantise": lambda: K.quantise(x),
            "quantise wide": lambda: K.quantise(some(M, F)),
        }
    for label, of in (("", dtype), *([(", fp8 cache", precision.FP8)] if fp8 else [])):
        found |= {name + label: call for name, call in _with_cache(dtype, some(8, KV, T, D, of=of)).items()}
    return found


def _with_cache(dtype: torch.dtype, cache: torch.Tensor) -> dict[str, Callable[[], Any]]:
    qkv, query = torch.zeros(M, (A + 2 * KV) * D, dtype=dtype), torch.zeros(M, A, D, dtype=dtype)
    tables, rows, two = (
        torch.zeros(T, D, dtype=dtype),
        torch.zeros(M, dtype=torch.long),
        torch.zeros(2, dtype=torch.long),
    )
    return {
        "rope_and_store": lambda: K.rope_and_store(qkv, tables, tables, cache, cache, rows, rows, A),
        "store": lambda: K.rope_and_store(qkv, tables, tables, cache, cache, rows, rows, 0),
        "prefill_attention": lambda: K.prefill_attention(qkv, tables, tables, cache, cache, two, 10, A),
        "decode_attention": lambda: K.decode_attention(query, cache, cache, None, rows),
        "decode_attention of slots": lambda: K.decode_attention(query, cache, cache, rows, rows),
    }


def usage(kernel: Any) -> dict[str, int]:
    """Registers, bytes of stack (spills), shared memory, warps, and counts of instructions, of a compiled kernel."""
    tool = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", said)[-1]
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    found = {"registers": int(registers), "stack": int(stack), "shared": shared, "warps": warps}
    return found | {name: len(re.findall(pattern, said)) for name, pattern in PATTERNS.items()}


def main() -> None:
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    K.INTERPRETED = True  # CPU tensors take the kernels' path; nothing is launched
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[sys.argv[1]]
    for capability in map(int, sys.argv[2:]):
        driver.set_active(Driver(capability))
        for name, call in calls(dtype, fp8=capability >= 89).items():
            compiled.clear()
            call()
            (kernel,) = compiled
            sys.stdout.write(json.dumps({"capability": capability, "kernel": name} | usage(kernel)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
