"""Tiny random captioners and the loop that drives an engine as the operator does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from benchmarks.random_captioner import Shape, make
from recap.engine import Caption, Engine, Request

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a random checkpoint of a shape, once a session."""
    made: dict[tuple[Shape, int], Path] = {}

    def get(shape: Shape | None = None, seed: int = 0) -> Path:
        shape = shape or Shape()
        if (shape, seed) not in made:
            made[shape, seed] = make(tmp_path_factory.mktemp("captioner"), shape, seed)
        return made[shape, seed]

    return get


def drive(engine: Engine, requests: Sequence[Request], limit_s: float = 120.0) -> dict[int, Caption]:
    """Put all requests, poll all captions. limit_s: seconds until the next of them."""
    found: dict[int, Caption] = {}
    todo = list(reversed(requests))
    deadline = time.monotonic() + limit_s
    while len(found) < len(requests):
        assert time.monotonic() < deadline, f"{len(requests) - len(found)} captions are missing"
        while todo and engine.want() > 0:
            engine.put(todo.pop())
        for caption in engine.poll(0.05):
            assert caption.id not in found
            found[caption.id] = caption
            deadline = time.monotonic() + limit_s
    return found
