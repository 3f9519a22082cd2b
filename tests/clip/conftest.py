"""Tiny models are fastest on one thread; the parity tests' libraries need a shim before they are imported."""

import torch

import tests.clip.parity  # noqa: F401

torch.set_num_threads(1)
