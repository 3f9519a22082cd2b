"""Losses: sharded equals one process, streamed equals plain, cached gradients equal the big batch, grouping by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from recap.clip import losses
from recap.clip.objective import Objective
from recap.clip.settings import IMAGENET, ClipModelConfig, LossConfig
from recap.clip.towers import RecapClip
from tests.clip.ranks import on_ranks

TINY = ClipModelConfig(vision="32x2x2", text="32x2x2", patch=8, context=6, vocabulary=20)
KINDS = [
    LossConfig("softmax"),
    LossConfig("softmax", stream=5),
    LossConfig("sigmoid"),
    LossConfig("multi_positive"),
    LossConfig("multi_positive", grouping=0.7, stream=7),
]


def objective(config: LossConfig) -> Objective:
    torch.manual_seed(0)
    return Objective(RecapClip(TINY, 16), config, *IMAGENET).double()


def batch(texts: int, size: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8)
    ids = torch.randint(1, 20, (size, texts, 6))
    keep = torch.stack([torch.randperm(4)[:3] for _ in range(size)])
    return {"images": images, "ids": ids, "keep": keep}


def loss_and_gradients(rank: int, world: int, config: LossConfig) -> tuple[float, dict[str, np.ndarray]]:
    """What one step of the trainer computes: sum of losses over the batch, gradients of its mean."""
    module: Any = objective(config)
    plain = module
    whole = batch(3 if config.kind == "multi_positive" else 1)
    size = len(whole["images"]) // world
    mine = {name: value[rank * size : (rank + 1) * size] for name, value in whole.items()}
    if world > 1:
        module = DistributedDataParallel(module)
    loss = module(mine)
    (loss * world / len(whole["images"])).backward()  # DDP averages over ranks
    total = loss.detach().clone()
    if world > 1:
        torch.distributed.all_reduce(total)
    return total.item(), {n: p.grad.numpy() for n, p in plain.named_parameters() if p.grad is not None}


def every_kind(rank: int, world: int) -> list[tuple[float, dict[str, np.ndarray]]]:
    return [loss_and_gradients(rank, world, config) for config in KINDS]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_one_process(world: int) -> None:
    alone, together = every_kind(0, 1), on_ranks(world, every_kind)
    for config, (loss, gradients), (sharded_loss, sharded) in zip(KINDS, alone, together, strict=True):
        assert sharded_loss == pytest.approx(loss, rel=1e-6), config
        assert sharded.keys() == gradients.keys() and any(np.abs(g).max() > 1e-4 for g in gradients.values())
        for name, gradient in gradients.items():
            np.testing.assert_allclose(sharded[name], gradient, rtol=1e-6, atol=1e-9, err_msg=f"{config} {name}")


def test_streamed_logsumexp_equals_plain_logits() -> None:
    torch.manual_seed(0)
    rows, columns = (F.normalize(torch.randn(n, 16, dtype=torch.float64), dim=-1) for n in (24, 96))
    found = []
    for stream in (0, 7, 96):
        inputs = [
            rows.clone().requires_grad_(),
            columns.clone().requires_grad_(),
            torch.tensor(14.0, requires_grad=True),
        ]
        loss = losses.cross_entropy(inputs[0], inputs[1], inputs[2], torch.arange(24) + 48, stream)
        found.append([loss, *torch.autograd.grad(loss, inputs)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    small = (rows[:4].clone().requires_grad_(), columns[:8].clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda r, c: losses.cross_entropy(r, c, torch.tensor(2.0), torch.arange(4), 3), small
    )


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.stream}-{c.grouping}")
def test_cached_gradients_equal_the_big_batch(config: LossConfig) -> None:
    plain = loss_and_gradients(0, 1, config)
    config = LossConfig(config.kind, config.grouping, stream=config.stream, chunk=5)
    cached = loss_and_gradients(0, 1, config)
    assert cached[0] == pytest.approx(plain[0], rel=1e-9)
    for name, gradient in plain[1].items():
        np.testing.assert_allclose(cached[1][name], gradient, rtol=1e-6, atol=1e-9, err_msg=name)


def test_cached_gradients_replay_random_numbers() -> None:
    """With dropout in a tower, the second run of a chunk must draw what the first drew."""

    class Noisy(RecapClip):
        seen: list[torch.Tensor]

        def encode_image(self, pixels, keep=None, patches=False):
            noise = torch.rand(len(pixels))
            self.seen.append(noise)
            features, _ = super().encode_image(pixels, keep)
            return features * (1 + noise[:, None]), None

    torch.manual_seed(0)
    model = Noisy(TINY, 16)
    model.seen = []
    Objective(model, LossConfig(chunk=4), *IMAGENET)(batch(1)).backward()
    first, again = model.seen[:3], model.seen[3:]
    assert len(again) == 3
    assert {tuple(t.tolist()) for t in first} == {tuple(t.tolist()) for t in again}


def test_grouping_by_hand() -> None:
    """2 images, 2 texts, 2 patches: weights are similarities scaled to [0, 1], cut below 1/2, scaled to sum 1."""
    patches = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]])
    texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.8, 0.6]]])
    # image 0: similarities (1, 0) and (0, 1): each text takes its patch. image 1: (0, .8) -> patch 1; (.8, .96) ->
    # patch 1
    grouped = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.6, 0.8]]])
    logits = 2.0 * grouped.flatten(0, 1) @ texts.flatten(0, 1).T
    expected = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2 * 4 / 2
    found = losses.grouping_loss(patches, texts, torch.tensor(2.0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 4, dtype=torch.float64), F.normalize(torch.randn(2, 2, 4, dtype=torch.float64), dim=-1))
    checked = tuple(t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(lambda p, t: losses.grouping_loss(p, t, torch.tensor(2.0)), checked)


@pytest.mark.parametrize("threshold, counts", [(0.0, True), (None, True), (0.7, True), (0.72, False), (1.0, False)])
def test_grouping_thresholds_by_hand(threshold: float | None, counts: bool) -> None:
    """Patches at 0, 45 and 90 degrees, texts at 0 and 90: the middle patch weighs 0.707 for both; 1/N is a third."""
    half = 0.5**0.5
    patches = torch.tensor([[[1.0, 0.0], [half, half], [0.0, 1.0]]])
    texts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    middle = half if counts else 0.0
    weights = torch.tensor([[1.0, middle, 0.0], [0.0, middle, 1.0]])
    grouped = F.normalize(weights @ patches[0], dim=-1)
    logits = 2.0 * grouped @ texts[0].T
    expected = (F.cross_entropy(logits, torch.arange(2)) + F.cross_entropy(logits.T, torch.arange(2))) / 2 * 2 / 2
    found = losses.grouping_loss(patches, texts, torch.tensor(2.0), threshold)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sigmoid_by_hand() -> None:
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = losses.sigmoid_loss(images, texts, torch.tensor(4.0), torch.tensor(-1.0))
    # logits: image 0 with both texts 4 - 1, image 1 with both 0 - 1
    expected = -sum(
        math.log(1 / (1 + math.exp(-(1 if i == j else -1) * (3.0 if i == 0 else -1.0))))
        for i in range(2)
        for j in range(2)
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_temperature_is_capped_and_comes_back_at_once() -> None:
    """OpenAI's rule: the parameter itself is cut back, not only what is computed with it."""
    module = objective(LossConfig()).float()
    with torch.no_grad():
        module.model.logit_scale.fill_(6.0)
    module.constrain()
    assert module.scale.item() == pytest.approx(100.0, rel=1e-5)
    module.scale.backward()
    assert module.model.logit_scale.grad is not None and module.model.logit_scale.grad.item() > 0
