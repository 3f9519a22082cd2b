"""What a step of CLIP and of the DiT costs and touches: operations, host waits, decay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hpc import config as configs
from recap.clip.task import ClipTask
from recap.dit.task import DitTask
from recap.train.state import decayed, own_parameters
from tests.clip.models import tiny
from tests.clip.test_training import tree as clip_tree
from tests.dit.conftest import tree as dit_tree
from tests.dit.conftest import world  # noqa: F401 - a fixture
from tests.train.host_waits import waits
from tests.train.ranks import Alone, free_port


def clip_task(world: Path, **changes: Any) -> ClipTask:  # noqa: F811
    config = clip_tree(world, **changes) | {"cluster": {"kind": "local"}}
    if config["model"]["architecture"] == "hf":
        config["model"]["tokenizer"] = tiny(world, "hf").tokenizer
    return ClipTask(configs.check(json.loads(json.dumps(config)), "test").work, 0, None, "")


def dit_task(world: Path, **changes: Any) -> DitTask:  # noqa: F811
    return DitTask(configs.check(json.loads(json.dumps(dit_tree(world, **changes))), "test").work, None)


def counted(task: Any, batch: Any) -> float:
    module = task.module()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the CPU's own is not counted
        for micro in batch.micro:
            module(micro).backward()
    return float(counter.get_total_flops())


SIZE = {"model__vision": "128x3x4", "model__text": "96x2x3", "data__streams": 4}
CLIPS = [
    {"model__architecture": "recap"},
    {"model__architecture": "hf"},
    {"model__architecture": "recap", "loss": {"kind": "sigmoid"}},
    {
        "model__architecture": "recap", "loss": {"kind": "multi_positive"},
        "text": {"weights": {"org_caption": 1.0}, "texts": 3, "sub_captions": {"columns": ["re_caption"]}},
    },
    {"stages": [{"image": 64, "samples": 96, "keep_patches": 0.5, "tokens": 8}]},
]  # fmt: skip


@pytest.mark.parametrize("change", CLIPS, ids=["recap", "hf", "sigmoid", "three texts", "half the patches"])
def test_clip_counts_its_operations(world: Path, change: dict[str, Any]) -> None:  # noqa: F811
    stages = {"stages": [{"image": 64, "samples": 96, "base_lr": 1e-3, "warmup": 0}]}
    task = clip_task(world, **SIZE | stages | change)
    batch = task.batch(0, 48, 0, 1)
    assert batch.flops == pytest.approx(counted(task, batch), rel=0.05)


@pytest.mark.parametrize("change", [{}, {"micro_batch": 16}, {"objective": {"kind": "ddpm"}}], ids=str)
def test_the_dit_counts_its_operations(world: Path, change: dict[str, Any]) -> None:  # noqa: F811
    task = dit_task(world, model__size="96x3x4/2", **change)
    batch = task.batch(0, 48, 0, 1)
    assert batch.flops == pytest.approx(counted(task, batch), rel=0.05)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    yield Alone(tmp_path)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "change", [CLIPS[1], CLIPS[2], CLIPS[4] | {"loss": {"chunk": 10}}], ids=["hf", "sigmoid", "chunks"]
)
def test_a_step_of_clip_waits_for_nothing(world: Path, alone: Any, monkeypatch: Any, change: dict[str, Any]) -> None:  # noqa: F811
    task = clip_task(world, train__ema=100, **change)
    settings = task.config.stage_settings(task.stage)
    settings.samples, settings.clip = 144, 1.0
    assert waits(task, settings, alone, monkeypatch) == []


@pytest.mark.parametrize("change", [{}, {"objective": {"kind": "ddpm", "min_snr": 5.0}}], ids=str)
def test_a_step_of_the_dit_waits_for_nothing(world: Path, alone: Any, monkeypatch: Any, change: Any) -> None:  # noqa: F811
    task = dit_task(world, micro_batch=24, **change)
    assert waits(task, task.config.train, alone, monkeypatch) == []


def test_a_wait_is_found(world: Path, alone: Any, monkeypatch: Any) -> None:  # noqa: F811
    """The watcher itself: a number that is read on the host, a table that stays there, a blocking copy."""
    task = dit_task(world)
    whole = task.module()

    class Reads(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.transformer, self.how = whole.transformer, how

        def forward(self, micro: Any) -> torch.Tensor:
            time = micro["time"]
            if self.how == "reads" and time.sum() > 0:
                time = time + 1
            if self.how == "indexes":
                time = time[torch.arange(len(time))]
            if self.how == "copies":
                time = time + torch.ones(len(time)).to(time.device)
            return (time * next(self.transformer.parameters()).sum()).sum()

    for how in ("indexes", "copies"):
        monkeypatch.setattr(task, "module", lambda how=how: Reads(how))
        assert waits(task, task.config.train, alone, monkeypatch)
        (alone.directory / "metrics.jsonl").unlink()
    monkeypatch.setattr(task, "module", lambda: Reads("reads"))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        waits(task, task.config.train, alone, monkeypatch)


@pytest.mark.parametrize("architecture", ["recap", "hf"])
def test_kernels_alone_decay_in_a_clip(world: Path, architecture: str) -> None:  # noqa: F811
    module = clip_task(world, model__architecture=architecture, loss={"kind": "sigmoid"}).module()
    kernels = decayed(module)
    decay = {name: parameter in kernels for name, parameter in own_parameters(module).items()}
    patch = "vision_model.embeddings.patch_embedding.weight" if architecture == "hf" else "visual.conv1.weight"
    assert decay[f"model.{'model.' if architecture == 'hf' else ''}{patch}"]
    for name, kernel in decay.items():
        other = name.endswith(("bias", "logit_scale", "class_embedding", "positional_embedding"))
        other |= any(part in name for part in ("token_embedding", "position_embedding", "norm", "ln_"))
        assert kernel != other, name


def test_kernels_alone_decay_in_a_dit(world: Path) -> None:  # noqa: F811
    module = dit_task(world).module()
    kernels = decayed(module)
    for name, parameter in own_parameters(module).items():
        if parameter.requires_grad:
            assert (parameter in kernels) != name.endswith(("bias", "scale_shift_table")), name
