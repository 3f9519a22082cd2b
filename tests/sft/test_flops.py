"""MFU's operations against torch's own count, whatever is trained, and asked for in any order."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recap.sft.flops import costs_of
from tests.sft.conftest import Make

TRAINED: dict[str, dict[str, Any]] = {
    "projector": {"trainable": ["multi_modal_projector"]},
    "stage 2": {"trainable": ["multi_modal_projector", "language_model", "lm_head"]},
    "everything": {"trainable": ["."]},
    "tower": {"trainable": ["vision_tower"]},
    "head": {"trainable": ["lm_head"]},
    "adapters": {"trainable": ["multi_modal_projector"], "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}},
}


@pytest.mark.parametrize("name", list(TRAINED))
def test_operations_of_a_step(task: Make, name: str) -> None:
    """The tower an image, the layers a token, the head a supervised token, attention a pair. One sample a pass, since
    padding is no use; not the sample of text alone, whose blank picture is none either."""
    if "lora" in TRAINED[name]:
        pytest.importorskip("peft")
    made = task(rows=1, logit_chunk=0, **TRAINED[name])
    batch = made.batch(0, 4, 0, 1)  # before the model was ever made
    module = made.module()
    assert all(len(micro["image_at"]) for micro in batch.micro)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
        for micro in batch.micro:
            module(micro).backward()
    assert batch.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    shares = [made.batch(0, 4, rank, 2).flops for rank in range(2)]
    assert sum(shares) == pytest.approx(batch.flops) and costs_of(module.llava) == made.costs
