"""CUDA's side of a program, watched without CUDA: what it launches and moves, and where the host would wait.

    with fake_cuda() as watch:
        model.to("cuda"); step(...)
    watch.launches, watch.moved, watch.flop, watch.waits

Tensors are PyTorch's fake ones (shapes and devices, no numbers), so that the 8 B shape costs nothing. torch's CPU build
has no guard for CUDA devices, which some operators ask for; that of the `meta` device, which does nothing, stands in.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.launch_work import kernel_bytes, operator_bytes, operator_flop
from recap import device as gpu

ROOT = Path(__file__).resolve().parents[2]
# Operators that launch nothing: they make views or take memory.
_FREE = (
    "view", "slice", "select", "expand", "permute", "transpose", "t.", "unsqueeze", "squeeze", "detach", "split",
    "as_strided", "alias", "_unsafe_view", "empty", "unbind", "_reshape_alias", "unfold", "chunk", "lift_fresh",
    "is_pinned", "sym_", "prim.", "new_empty",
)  # fmt: skip
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "equal.", "is_nonzero")


class Watch(TorchDispatchMode):
    """launches: operator or kernel -> count. waits: (what, where) -> count, copies from ordinary memory among them.
    moved: bytes that it reads and writes. flop: of matrix products and of PyTorch's own attention."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.clear()

    def clear(self) -> None:
        self.launches: collections.Counter[str] = collections.Counter()
        self.moved: collections.Counter[str] = collections.Counter()
        self.flop: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(self._as_fake, (args, kwargs or {}))
        name = str(func).removeprefix("aten.")
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(x.device.type == "cuda" for x in inputs)
        if on_gpu and name.startswith(_WAITS):
            self.waits[name, where()] += 1
        self._see_indices(name, args, inputs)
        out = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if (on_gpu or any(x.device.type == "cuda" for x in outputs)) and not name.startswith(_FREE):
            self.launches[name] += 1
            self.moved[name] += operator_bytes(name, inputs, outputs)
            self.flop[name] += operator_flop(name, inputs)
        self._see_copies(name, args, kwargs, inputs, outputs)
        return out

    def _as_fake(self, x: Any) -> Any:
        real = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
        return self.fake.from_tensor(x) if real else x

    def _see_indices(self, name: str, args: Any, inputs: list[Any]) -> None:
        if name.startswith(("index.", "index_put", "_index_put")):
            on_gpu = inputs[0].device.type == "cuda"
            for index in tree_leaves(args[1]):
                if on_gpu and isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self.waits[f"{name} by a mask", where()] += 1
                elif on_gpu and isinstance(index, torch.Tensor) and index.device.type == "cpu":
                    self.waits[f"{name} by an index on the CPU", where()] += 1

    def _see_copies(self, name: str, args: Any, kwargs: Any, inputs: list[Any], outputs: list[Any]) -> None:
        if name.startswith(("_to_copy", "copy_")):
            source, target = (inputs[1], inputs[0]) if name.startswith("copy_") else (inputs[0], outputs[0])
            crosses = {source.device.type, target.device.type} == {"cpu", "cuda"}
            free = kwargs.get("non_blocking") or (name.startswith("copy_") and len(args) > 2 and args[2])
            if crosses and not free:
                self.waits[f"blocking copy {source.device.type} to {target.device.type}", where()] += 1


def where() -> str:
    """The line of the project that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith((str(ROOT / "recap"), str(ROOT / "hpc"), str(ROOT / "benchmarks"))):
            return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.line}"
    return "outside of the project"


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Lends CUDA the guard of the meta device where torch has none."""
    if torch.version.cuda:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    kinds = torch._C._autograd.DeviceType
    count = int(kinds.Meta.value) + 1
    guards = (ctypes.c_void_p * count).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[int(kinds.CUDA.value)]
    guards[int(kinds.CUDA.value)] = guards[int(kinds.Meta.value)]
    try:
        yield
    finally:
        guards[int(kinds.CUDA.value)] = before


def _pinned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Real memory of the host, which NumPy can fill."""
    with unset_fake_temporarily():
        return torch.zeros(shape, dtype=dtype)


def _launch(watch: Watch) -> Any:
    def run(kernel: Any, *arguments: Any, **options: Any) -> None:
        name = f"triton {kernel.__name__}"
        watch.launches[name] += 1
        given = dict(zip(kernel.arg_names, arguments, strict=False))  # the others are given by name
        watch.moved[name] += kernel_bytes(kernel.__name__, given | options)

    return run


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Within the block `torch.device("cuda")` takes tensors, all of them fake, and `recap.device` believes in it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_device_guard())
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        watch = stack.enter_context(Watch(fake))
        mark = mock.Mock(return_value=mock.Mock())
        for name, stand_in in {
            "available": lambda: True, "numbered": lambda device: device, "mark": mark, "event": mark,
            "current": lambda device: contextlib.nullcontext(), "synchronise": lambda device: None,
            "pinned": _pinned,
        }.items():  # fmt: skip
            stack.enter_context(mock.patch.object(gpu, name, stand_in))
        with contextlib.suppress(ImportError):
            from triton.runtime.jit import JITFunction

            stack.enter_context(mock.patch.object(JITFunction, "run", _launch(watch)))
        yield watch
