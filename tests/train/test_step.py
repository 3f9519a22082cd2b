"""What a step of CLIP, of the DiT and of the captioner costs and touches: operations, host waits, decay."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_cuda import fake_cuda
from hpc import config as configs
from recap.clip.task import ClipTask
from recap.dit.task import DitTask
from recap.sft import model as models
from recap.sft.task import SftTask
from recap.train import parallel
from recap.train.loop import Training
from recap.train.state import decayed, own_parameters
from tests.clip.models import tiny
from tests.clip.test_training import tree as clip_tree
from tests.dit.conftest import tree as dit_tree
from tests.dit.conftest import world  # noqa: F401 - a fixture
from tests.train.host_waits import waits
from tests.train.ranks import Alone, free_port

ROOT = Path(__file__).resolve().parents[2]


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
CLIPS: list[dict[str, Any]] = [
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


def sft_task(**changes: Any) -> SftTask:
    """The shipped captioner on generated flags, packed, as it is trained on a GPU."""
    tree = {
        "trainer": "recap.sft.trainer.SftTrainer", "name": "sft", "cluster": {"kind": "local"}, "template": "short",
        "model": str(ROOT / "recap/demo/captioner"), "trainable": ["multi_modal_projector", "language_model"],
        "data": [{"kind": "world", "path": "recap.worlds.flags.sample", "samples": 90}], "rows": 2, "pack": 512,
        "logit_chunk": 64, "max_tokens": 320, "train": {"batch": 8, "samples": 24, "threads": 1, "ema": 100}, **changes,
    }  # fmt: skip
    return SftTask(configs.check(tree, "test").work, ROOT / "recap/demo/captioner", "cuda")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that no device without numbers can compute is replaced; the masks and bounds that it takes are not."""
    from transformers import AttentionInterface

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **given: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flex_attention", attend)


@pytest.mark.parametrize(
    "change",
    [{}, *(pytest.param(more, marks=pytest.mark.slow) for more in (
        {"attention": "sdpa"}, {"lora": {"rank": 4, "targets": r".*(q|v)_proj"}}))],
    ids=str,
)  # fmt: skip
def test_a_step_of_the_captioner_waits_for_nothing(alone: Any, kernels: None, monkeypatch: Any, change: Any) -> None:
    task = sft_task(**change)
    monkeypatch.setattr(task, "module", task.layout)
    assert waits(task, task.config.train, alone, monkeypatch) == []


@pytest.mark.parametrize("attention", ["auto", pytest.param("sdpa", marks=pytest.mark.slow)])
def test_the_captioner_on_fake_cuda_waits_for_nothing(kernels: None, attention: str) -> None:
    """The forward pass as on a GPU; the meta device of the test above knows no index that is on another device."""
    task = sft_task(attention=attention)
    batch = task.batch(0, 8, 0, 1)
    module: Any = task.layout()
    assert module.llava.config.text_config._attn_implementation == ("sdpa" if attention == "sdpa" else "flex_attention")
    with fake_cuda() as watch:
        module.to_empty(device="cuda")
        watch.clear()
        for micro in batch.micro:
            loss = module(parallel.to_device(micro, torch.device("cuda", 0)))
    assert loss.device.type == "cuda" and watch.launches.total() > 100
    assert not watch.waits, watch.waits


@pytest.mark.parametrize("trained", [["."], ["multi_modal_projector"]], ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_whether_all_that_is_trained_is_used(monkeypatch: pytest.MonkeyPatch, known: bool, trained: list[str]) -> None:
    """DDP looks for parameters without a gradient only where there can be some: here the tower's last norm, where
    nobody knows that it lies behind the features."""
    if not known:
        monkeypatch.setattr(models, "_behind_features", lambda llava: None)
    assert sft_task(trainable=trained).all_used() is (known or trained != ["."])


@pytest.mark.parametrize("memory", [10**9, 10**4])
def test_gradients_are_added_once_where_memory_holds_them(
    world: Path,  # noqa: F811
    alone: Any, monkeypatch: pytest.MonkeyPatch, memory: int,
) -> None:  # fmt: skip
    """Under FSDP2, in the last micro-batch or in each: the same gradients."""

    class Gpu:
        type = "cuda"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    said: list[bool] = []
    told = FSDPModule.set_requires_gradient_sync
    note = lambda self, last: said.append(last) or told(self, last)  # noqa: E731
    monkeypatch.setattr(FSDPModule, "set_requires_gradient_sync", note)
    task = dit_task(world, micro_batch=16, train__parallel="fsdp")
    training = Training(task, task.config.train, alone)
    found = []
    for once in (True, parallel.reduces_once_per_step(training.module, Gpu())):  # type: ignore[arg-type]
        training.reduces_once_per_step = once
        training.gradients(task.batch(0, 48, 0, 1), 48.0)
        found.append(parallel.gradient_norm(training.module, 0.0).item())
        training.state.optimizer.zero_grad()
    assert said == [False, False, True] + ([False, False, True] if memory == 10**9 else [True] * 3)
    assert found[1] == pytest.approx(found[0], rel=1e-6)


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
            transformer: Any = self.transformer
            return (time * next(transformer.parameters()).sum()).sum()

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
