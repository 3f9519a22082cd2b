"""Import this first where open_clip is to run beside a torch without CUDA.

A torchvision that was built for CUDA wants two operators then that only CUDA builds of torch register; without them
neither it nor transformers (which imports it where it finds it) can be imported.
"""

from __future__ import annotations

import importlib.util

import torch

library = None
if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
