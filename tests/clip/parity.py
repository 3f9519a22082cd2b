"""open_clip and clip_benchmark, for parity: optional, since they want torchvision.

    pip install --no-deps open_clip_torch timm torchvision ftfy wcwidth clip-benchmark

A torchvision built for CUDA does not import beside a torch without it, for want of two operators. `shim` declares
them, before anything imports torchvision (transformers does, where it is installed).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

_library: Any = None


def shim() -> None:
    global _library
    if _library is None and torch.version.cuda is None and importlib.util.find_spec("torchvision"):
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def open_clip() -> Any:
    """The module; the test is skipped where it or torchvision is not installed."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("open_clip")
