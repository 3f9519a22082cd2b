"""One small CLIP as an arm of a study: trained in this process by the ordinary trainer on tars of a world."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.arms import Alone

if TYPE_CHECKING:
    from recap.clip.encoder import Encoder
    from recap.clip.settings import ClipConfig


def clip_config(
    study: Mapping[str, Any], world: Path, members: Mapping[str, str], weights: Mapping[str, float], seed: int,
    keep: Path | None = None,
) -> ClipConfig:  # fmt: skip
    """A training on world/train/*.tar with the tokenizer of the world.

    Args:
        study: with `model`, keys of the CLIP's, and `training`.
        members: of the tars, by column of texts.
        weights: of the columns.
        keep: run of the pairs that are trained on; None: all.
    """
    from recap.clip.settings import ClipConfig, ClipModelConfig, Stage
    from recap.data.column import ColumnConfig
    from recap.data.samples import JoinedDataConfig
    from recap.text_policy import TextPolicyConfig
    from recap.train.settings import TrainSettings

    t, tokenizer = study["training"], world / "tokenizer"
    vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    return ClipConfig(
        model=ClipModelConfig(vocabulary=vocabulary, tokenizer=str(tokenizer), **study["model"]),
        data=JoinedDataConfig(
            shards=[str(world / "train")], root=str(world), streams=4, window=3, decoders=1, readers=1,
            columns={name: ColumnConfig(member=member) for name, member in members.items()},
            keep=str(keep) if keep else None,
        ),
        text=TextPolicyConfig(weights=dict(weights)),
        stages=[Stage(image=t["image"], samples=t["samples"], warmup=t["warmup"])],
        train=TrainSettings(
            batch=t["batch"], lr=t["lr"], weight_decay=t["weight_decay"], beta2=0.95, clip=1.0, seed=seed, threads=1
        ),
        area=t["area"],
    )  # fmt: skip


def trained(config: ClipConfig, out: Path) -> tuple[Encoder, list[float]]:
    """The CLIP after its training, and every tenth loss that was told. out: a folder for the training's files."""
    import torch

    from recap.clip.encoder import Encoder
    from recap.clip.task import ClipTask
    from recap.train.loop import train

    torch.set_num_threads(1)
    task = ClipTask(config, 0, None, "")
    train(task, config.stage_settings(config.stages[0]), Alone(out))
    task.close()
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return Encoder(out / "exports" / "final"), [line["loss"] for line in told if "loss" in line][::10]
