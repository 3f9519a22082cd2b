"""The numbers of the native engine: fp8, and what an activation is."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest number of e4m3
# An activation as matrix products take it: a plain tensor, or its fp8 numbers with float32 [M, 1] scales.
Activation = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
