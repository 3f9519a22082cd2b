"""The accelerator, as all of hpc and recap ask for it: `torch.cuda` stands in no other module.

AMD's GPUs answer to the same names in PyTorch's ROCm builds and take the same paths, Triton's kernels included. fp8 is
refused there but on gfx950: older ones have another e4m3 (`fnuz`), whose numbers are not the ones the engine makes.
On a machine without a GPU every function does what a CPU needs: nothing, or plain memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

GPU = "cuda"


def available() -> bool:
    """Whether this process sees a GPU."""
    return torch.cuda.is_available()


def best() -> str:
    """The device that a command takes unless told otherwise."""
    return GPU if available() else "cpu"


def claim(local_rank: int) -> torch.device:
    """This process's device, made the current one: the GPU of its rank on the node, or the CPU."""
    if not available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return torch.device(GPU, torch.cuda.current_device())


def numbered(device: torch.device) -> torch.device:
    """The same device with its number: `cuda` means the current one."""
    if device.type != GPU or device.index is not None:
        return device
    return torch.device(GPU, torch.cuda.current_device())


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a device the current one in a `with` block of this thread: Triton and new streams take that one."""
    return torch.cuda.device(device) if device.type == GPU else contextlib.nullcontext()


def name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == GPU else "CPU"


def uuid(device: torch.device) -> str:
    """The device as nvidia-smi names it."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def has_bf16() -> bool:
    return torch.cuda.is_bf16_supported()


def has_fp8(device: torch.device) -> bool:
    """Whether there are matrix products of e4m3 numbers; CPUs have slow ones, for tests."""
    if device.type != GPU:
        return True
    if torch.version.hip:
        return "gfx95" in torch.cuda.get_device_properties(device).gcnArchName
    return torch.cuda.get_device_capability(device) >= (8, 9)


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == GPU:
        torch.cuda.synchronize(device)


def pinned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory that `device` copies from and to beside its other work."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == GPU)


def mark(timing: bool = False) -> Any:
    """An event on the current stream: `synchronize()` waits until the device has come here."""
    event = torch.cuda.Event(enable_timing=timing)
    event.record()
    return event


def event(timing: bool = False) -> Any:
    """An event to be recorded later."""
    return torch.cuda.Event(enable_timing=timing)


def capture(device: torch.device, action: Callable[[], object]) -> Any:
    """`action` as a graph whose `replay()` runs it again. It is run twice before: kernels are compiled and workspaces
    allocated outside of the capture."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            action()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph


def release_memory() -> None:
    """Give memory that PyTorch keeps and does not use back to the device."""
    if available():
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that nobody holds."""
    return torch.cuda.mem_get_info(device)[0]


def memory(device: torch.device) -> int:
    """Bytes that the device has."""
    return torch.cuda.get_device_properties(device).total_memory


def restart_peak() -> None:
    """Begin to measure anew what `peak` says."""
    torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """Bytes that the current GPU held at most since `restart_peak`."""
    return torch.cuda.max_memory_allocated()


def peak_memory(device: torch.device, action: Callable[[], object]) -> int:
    """Bytes that `action` needed at most beyond those held before."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    action()
    return torch.cuda.max_memory_allocated(device) - before
