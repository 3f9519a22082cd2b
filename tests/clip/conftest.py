"""Tiny models are fastest on one thread; the parity tests' libraries need a shim before they are imported."""

import torch

from tests.clip.parity import shim

torch.set_num_threads(1)
shim()
