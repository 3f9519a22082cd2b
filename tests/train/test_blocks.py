"""Compiled blocks and recomputed activations train CLIP and the DiT as plain ones do (the captioner: tests.sft)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.clip.test_training import tree as clip
from tests.dit.conftest import tree as dit
from tests.dit.conftest import world  # noqa: F401 - a fixture
from tests.train.ranks import curve, launch, log


def config_of(kind: str, world: Path) -> dict[str, Any]:  # noqa: F811
    if kind == "dit":
        return dit(world, train__samples=192)
    stages = [{"image": 16, "samples": 192, "base_lr": 2e-2, "warmup": 48}]
    return clip(world, stages=stages, train__precision="fp32") | {"cluster": {"kind": "local"}}


def weights(directory: Path) -> dict[str, Any]:
    files = sorted(directory.glob("exports/final/**/*.safetensors"))
    assert files
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "dit"])
def test_blocks_train_alike(world: Path, tmp_path: Path, kind: str) -> None:  # noqa: F811
    ways = {"plain": {}, "recomputed": {"checkpointing": True}, "compiled": {"compile": True}}
    ways["both"] = ways["recomputed"] | ways["compiled"]
    curves, exports = {}, {}
    for name, change in ways.items():
        config = config_of(kind, world)
        config["train"] |= change
        assert launch(tmp_path / name, 1, config, module="tests.sft.ranks") == [0], log(tmp_path / name)
        curves[name] = [loss for _, loss in curve(tmp_path / name)]
        exports[name] = weights(tmp_path / name)
    assert len(curves["plain"]) == 4 and curves["recomputed"] == curves["plain"]
    for name in ("compiled", "both"):
        assert curves[name] == pytest.approx(curves["plain"], rel=1e-3)
        assert exports[name].keys() == exports["plain"].keys()
    assert all((exports["recomputed"][name] == tensor).all() for name, tensor in exports["plain"].items())
