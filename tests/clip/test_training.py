"""The whole of a CLIP training: stages, mixing, exact resume on other numbers of ranks, broken samples, bad input."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hpc import config as configs
from hpc.base.errors import UserError
from recap.clip import weights
from recap.clip.settings import ClipConfig, check, without_effect
from recap.clip.task import ClipTask
from recap.clip.trainer import ClipTrainer
from tests.clip.models import tiny
from tests.clip.world import write_world
from tests.train.ranks import curve, launch, log
from tests.train.ranks import lines as metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, broken=41)
    return folder


def tree(world: Path, **changes: Any) -> dict[str, Any]:
    """A config file's content."""
    model = vars(tiny(world))
    made: dict[str, Any] = {
        "name": "clip",
        "cluster": "local",
        "trainer": "recap.clip.trainer.ClipTrainer",
        "model": {k: v for k, v in model.items() if k != "start"},
        "data": {
            "shards": [str(world / "tars")],
            "columns": {
                "org_caption": {"member": "txt"},
                "re_caption": {"folder": str(world / "recap"), "field": "caption"},
            },
            "streams": 4,
            "window": 2,
            "decoders": 1,
        },
        "text": {"weights": {"org_caption": 0.5, "re_caption": 0.5}},
        "stages": [
            {"image": 16, "samples": 480, "base_lr": 2e-2, "warmup": 48},
            {"image": 32, "samples": 96, "base_lr": 2e-3, "warmup": 0},
        ],
        "train": {"batch": 48, "weight_decay": 0.2, "beta2": 0.95, "clip": 0.0, "threads": 1, "max_rejected": 0.1},
    }
    for key, value in changes.items():
        target, keys = made, key.split("__")
        for part in keys[:-1]:
            target = target[part]
        target[keys[-1]] = value
    return made


def trainer(config: dict[str, Any]) -> ClipTrainer:
    made = configs.check(json.loads(json.dumps({**config, "cluster": {"kind": "local"}})), "test").trainer()
    assert isinstance(made, ClipTrainer)
    return made


def task(config: dict[str, Any], number: int = 0) -> ClipTask:
    return ClipTask(trainer(config).config, number, None, "")


def run(directory: Path, world: int, config: dict[str, Any], **gang: Any) -> list[int]:
    config = {**config, "cluster": {"kind": "local"}}
    return launch(directory, world, config, module="tests.sft.ranks", **gang)


@pytest.mark.slow(ci=True)
def test_a_training_of_two_stages_resumes_exactly_on_other_ranks(world, tmp_path) -> None:
    config = tree(world)
    config["train"]["workers"] = 1
    assert run(tmp_path / "whole", 1, config) == [0], log(tmp_path / "whole")
    first = [loss for _, loss in curve(tmp_path / "whole/stages/0-16px")]
    assert sum(first[-3:]) / 3 < first[0] - 0.3

    assert run(tmp_path / "parts", 2, config, stop_at=4) == [75, 75], log(tmp_path / "parts")
    assert run(tmp_path / "parts", 1, config, stop_at=2) == [75], log(tmp_path / "parts")
    assert run(tmp_path / "parts", 4, config) == [0] * 4, log(tmp_path / "parts")
    for stage in ("0-16px", "1-32px"):
        ours, theirs = (curve(tmp_path / name / "stages" / stage) for name in ("parts", "whole"))
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        np.testing.assert_allclose([loss for _, loss in ours], [loss for _, loss in theirs], rtol=2e-3)

    last = [metrics(tmp_path / name / "stages/0-16px")[-1] for name in ("parts", "whole")]
    assert last[0]["reasons"] == last[1]["reasons"] == {"image: not an image": last[1]["rejected"]}

    assert (tmp_path / "whole/metrics.jsonl").resolve() == (tmp_path / "whole/stages/1-32px/metrics.jsonl").resolve()
    model, found, image = weights.opened(tmp_path / "whole/exports/final")
    assert image == 32 and found.architecture == "recap"
    assert model.encode_text(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 24)


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("precision, near", [("fp32", 1e-4), ("bf16", 0.03)])
def test_fsdp_trains_as_ddp_does(world, tmp_path, precision, near) -> None:
    config = tree(world, train__precision=precision)
    config["stages"] = [{"image": 16, "samples": 192, "base_lr": 2e-2, "warmup": 0}]
    config["model"]["architecture"] = "hf"
    config["model"]["tokenizer"] = tiny(world, "hf").tokenizer
    config["loss"] = {"chunk": 10}
    curves = []
    for kind in ("ddp", "fsdp"):
        config["train"]["parallel"] = kind
        assert run(tmp_path / kind, 2, config) == [0, 0], log(tmp_path / kind)
        curves.append([loss for _, loss in curve(tmp_path / kind)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=near)
    assert weights.opened(tmp_path / "fsdp/exports/final")[1].architecture == "hf"


def test_batches_are_pure_and_elastic(world) -> None:
    """The same samples, crops, texts and dropped patches for any number of ranks, wherever reading begins."""
    config = tree(world)
    config["stages"][0] |= {"keep_patches": 0.5, "image": 32}
    whole = task(config).batch(480, 48, 0, 1).micro[0]
    assert whole["images"].dtype == torch.uint8 and whole["keep"].shape == (48, 8)
    fresh = task(config)
    parts = [fresh.batch(480, 48, rank, 4).micro[0] for rank in range(4)]
    for name in ("images", "ids", "keep"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    assert not torch.equal(task(config, 1).batch(480, 48, 0, 1).micro[0]["ids"], whole["ids"])


def test_broken_images_are_replaced_and_counted(world) -> None:
    made = task(tree(world))
    ready = made.samples.take(0, made.size())
    reasons = Counter(reason for r in ready for _, reason in r.rejected)
    assert reasons["image: not an image"] >= 15 and len(reasons) == 1
    assert len(ready) == made.size() == 600
    batch = made.batch(0, 48, 0, 1)
    assert len(batch.micro[0]["images"]) == 48 and batch.weight == 48


def test_the_realised_mix_is_the_weights(world) -> None:
    made = task(tree(world, text__weights={"org_caption": 0.8, "re_caption": 0.2}))
    drawn = Counter(d.column for r in made.samples.take(0, 600) for d in r.value.texts)
    assert abs(drawn["org_caption"] - 480) < 3 * (600 * 0.8 * 0.2) ** 0.5


def test_several_texts_an_image_with_source_prefixes(world) -> None:
    made = task(
        tree(world, text={"weights": {"org_caption": 1.0}, "texts": 3, "prefix": {"org_caption": "[ALT]"},
                          "sub_captions": {"columns": ["re_caption"]}}, loss={"kind": "multi_positive"})
    )  # fmt: skip
    ids = made.batch(0, 48, 0, 1).micro[0]["ids"]
    assert ids.shape == (48, 3, 12)
    alt = made.tokens.tokenizer.convert_tokens_to_ids("[ALT]")
    assert (ids[:, 0, 1] == alt).all() and not (ids[:, 1:, 1] == alt).any()


def test_identity_is_of_contents_not_of_places(world, tmp_path) -> None:
    first = configs.check({**tree(world), "cluster": {"kind": "local"}}, "test")
    shutil.copytree(first.work.model.tokenizer, tmp_path / "elsewhere")
    moved = configs.check(
        {**tree(world, model__tokenizer=str(tmp_path / "elsewhere")), "cluster": {"kind": "local"}}, ""
    )
    assert configs.identity(first, first.trainer()) == configs.identity(moved, moved.trainer())
    other = configs.check({**tree(world, text__weights={"org_caption": 1.0}), "cluster": {"kind": "local"}}, "test")
    assert configs.identity(other, other.trainer()) != configs.identity(first, first.trainer())


def test_un_indexed_tars_train_too(world) -> None:
    config = tree(world, text__weights={"org_caption": 1.0}, data__indexed=False, data__size=600)
    assert len(task(config).batch(0, 48, 0, 1).micro[0]["images"]) == 48


def test_a_checkpoint_of_other_samples_is_another_one(world, tmp_path) -> None:
    """Shards that were added would change the order of all that is still to come."""
    first = task(tree(world)).identity()
    assert task(tree(world)).identity() == first
    fewer = tree(world, data__shards=[str(world / "tars/000.tar"), str(world / "tars/001.tar")])
    assert task(fewer).identity() != first


def test_what_a_stage_writes_keeps_what_it_did_not_train(world, tmp_path) -> None:
    """Positions that are fixed, but not ours."""
    made = task(tree(world))
    module: Any = made.module()
    weights.save(module.model, made.model_config, made.tokens, 16, tmp_path / "start")
    file = tmp_path / "start" / weights.OPEN_CLIP_WEIGHTS
    tensors = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    made = task(tree(world, model__start=str(tmp_path / "start")))
    fine_tuned = ClipTask(made.config, 0, None, str(tmp_path / "start"))
    trained = {name: p.detach() for name, p in fine_tuned.module().named_parameters() if p.requires_grad}
    fine_tuned.export(trained, tmp_path / "out")
    out = load_file(tmp_path / "out" / weights.OPEN_CLIP_WEIGHTS)
    assert out.keys() == tensors.keys() and all(torch.equal(out[name], tensors[name]) for name in out)


@pytest.mark.slow(ci=True)
def test_what_the_objective_learned_is_carried_on(world, tmp_path) -> None:
    """SigLIP's bias from stage to stage and into the export, as open_clip has it; a temperature within its bounds."""
    config = tree(world, loss={"kind": "sigmoid", "temperature": 0.005, "bias": -8.0})
    config["stages"] = [
        {"image": 16, "samples": 480, "base_lr": 2e-1, "warmup": 0},
        {"image": 16, "samples": 96, "base_lr": 1e-6, "warmup": 0},
    ]
    assert run(tmp_path, 1, config) == [0], log(tmp_path)
    first, second = (tmp_path / "stages" / name / "exports/final" for name in ("0-16px", "1-16px"))
    one, two = (load_file(folder / weights.OPEN_CLIP_WEIGHTS) for folder in (first, second))
    bias = one["logit_bias"].item()
    assert abs(bias + 8.0) > 0.01 and two["logit_bias"].item() == pytest.approx(bias, abs=1e-3)
    made = json.loads((first / weights.OPEN_CLIP_CONFIG).read_text())["model_cfg"]
    assert made["init_logit_bias"] == pytest.approx(bias)
    assert one["logit_scale"].exp() <= 100.001 and two["logit_scale"].exp() <= 100.001


@pytest.mark.slow(ci=True)
def test_warm_up_in_samples_where_epochs_say_the_length(world, tmp_path) -> None:
    config = tree(world)
    config["stages"] = [{"image": 16, "warmup": 96}, {"image": 16, "samples": 48}]
    config["train"] |= {"epochs": 0.5, "lr": 1e-3, "schedule": "constant"}
    assert run(tmp_path, 1, config) == [0], log(tmp_path)
    rates = [line["lr"] for line in metrics(tmp_path / "stages/0-16px")]
    assert rates == pytest.approx([5e-4] + [1e-3] * 6) and len(metrics(tmp_path / "stages/1-16px")) == 1


def test_stages_as_they_are_written(world) -> None:
    made = trainer(tree(world, stages=[{"image": 16, "tokens": 8, "samples": 2.56e9}]))
    assert made.samples() == 2_560_000_000
    assert ClipTask(made.config, 0, None, "").batch(0, 48, 0, 1).micro[0]["ids"].shape == (48, 1, 8)


def test_what_a_dry_run_says(world) -> None:
    lines = dict(trainer(tree(world, base_lr=8e-6, stages=[{"image": 112, "samples": 2_560_000_000, "batch": 32768}],
                              model__patch=16, data__streams=64)).describe(8))  # fmt: skip
    assert lines["texts"] == "org_caption 0.5 · re_caption 0.5 · 1 an image · 12 tokens"
    assert "lr 0.00102 cosine" in lines["stage"]


def test_keys_that_every_stage_takes_the_place_of_are_refused() -> None:
    def work(stages: str, *typed: str) -> ClipConfig:
        return configs.load(
            CONFIGS / "demo.yaml", [f"stages={stages}", "train.samples=16", "train.epochs=2", *typed]
        ).work

    whole = work("[{image: 32, samples: 64, batch: 8, base_lr: 1e-4, warmup: 0}]")
    assert without_effect(whole) == ["samples", "epochs", "lr", "batch", "warmup"]
    with pytest.raises(UserError, match=r"`train.samples`: 16 has no effect: .* \(as in stages.0.samples=…\)"):
        check(whole)
    assert without_effect(work("[{image: 32, samples: 64}, {image: 32}]")) == []
    assert without_effect(work("[{image: 32}]", "base_lr=1e-4")) == ["lr"]


CONFIGS = Path(__file__).parents[2] / "configs/clip"


@pytest.mark.parametrize(
    "path", sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "demo.yaml", CONFIGS / "own_tars.yaml"}), ids=lambda p: p.stem
)
def test_shipped_configs_are_the_papers(path: Path) -> None:
    made = configs.load(path, ["cluster=local"]).trainer()
    assert isinstance(made, ClipTrainer)
    config = made.config
    first, second = (config.stage_settings(stage) for stage in config.stages)
    assert [stage.image for stage in config.stages] == [112, 224] and config.model.context == 128
    assert (first.samples, first.batch, first.lr) == (2_560_000_000, 32768, pytest.approx(1.024e-3))
    assert (second.samples, second.batch, second.lr) == (128_000_000, 16384, pytest.approx(2.56e-5))
    assert (first.warmup, second.warmup) == (51_200_000, 25_600_000)
    assert (first.beta1, first.beta2, first.weight_decay, first.clip, first.schedule) == (0.9, 0.95, 0.2, 0.0, "cosine")
    assert config.text.weights == {"org_caption": 0.8, "re_caption": 0.2}
    assert 32768 % config.data.streams == 0 == config.data.streams % 128
