"""CLIP training as a gang job (hpc.trainer.Trainer). Torch-free until `train`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hpc.base.errors import UserError
from hpc.trainer import Gang
from recap.clip.settings import ClipConfig, check, stage_name
from recap.clip.tokenizer_files import check_tokenizer, make_of_texts
from recap.data.image_version import VERSION_2
from recap.data.joined import check_division
from recap.data.samples import check_columns, check_memory, column_identities, describe_reading, shared_input
from recap.model_files import file_digest
from recap.text_policy import TextPolicy
from recap.train.groups import Layout, table
from recap.train.settings import check as check_training
from recap.train.settings import length, length_in_words


class ClipTrainer:
    """`trainer: recap.clip.trainer.ClipTrainer`."""

    Config: ClassVar[type] = ClipConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: VERSION_2}

    def __init__(self, config: ClipConfig) -> None:
        self.config, self._input = config, ""

    def check(self, ranks: int) -> None:
        check_training(self.config.train)
        check(self.config)
        for stage in self.config.stages:
            settings = self.config.stage_settings(stage)
            check_training(settings, ranks)
            if self.config.data.indexed:
                check_division(settings.batch, self.config.data.streams, ranks)
        model = self.config.model
        if not (model.tokenizer and Path(model.tokenizer).exists()):
            raise UserError(
                f"config: `model.tokenizer`: {model.tokenizer or 'empty'}: there is no such folder. Name another, "
                f"or make a tokenizer of this training's texts:\n{make_of_texts(self.config)}"
            )
        if model.start and not Path(model.start).exists():
            raise UserError(f"config: `model.start`: {model.start}: there is no such folder.")
        check_tokenizer(self.config)
        self._input = check_columns(self.config.data, TextPolicy(self.config.text).columns)

    def check_memory(self, ranks: int, run: Path, memory: int | None) -> None:
        check_memory(self.config.data, self.config.train.seed, ranks, run, memory)

    def identity(self) -> dict[str, Any]:
        """Digests of the tokenizer and of the weights to start from, and identities of the columns."""
        made: dict[str, Any] = {}
        for key in ("tokenizer", "start"):
            if path := getattr(self.config.model, key):
                files = sorted(
                    p for p in _files(Path(path)) if p.name == "tokenizer.json" or p.suffix == ".safetensors"
                )
                made[key] = {p.name: file_digest(p) for p in files}
        return made | column_identities(self.config.data)

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        c = self.config
        shares = " · ".join(f"{name} {weight:g}" for name, weight in c.text.weights.items())
        lines = [
            ("model", f"{c.model.architecture} · vision {c.model.vision}/{c.model.patch} · text {c.model.text}"),
            ("texts", f"{shares} · {c.text.texts} an image · {c.model.context} tokens"),
        ]
        for stage in c.stages:
            s = c.stage_settings(stage)
            warmup = f"{s.warmup:.1%}" if s.warmup < 1 else f"{s.warmup:,.0f} samples"
            rate = f"lr {s.lr:.3g} {s.schedule}, warm-up {warmup}"
            lines.append(("stage", f"{stage.image} px · {length_in_words(s)}, {s.batch:,} a step · {rate}"))
        lines.append(("input", self._input))
        if told := describe_reading(c.data, ranks):
            lines.append(("reading", told))
        return lines

    def details(self) -> list[str]:
        return table(self)

    def layouts(self) -> Iterator[Layout]:
        """Each stage's model on the meta device. Loads torch. UserError where the weights to start from do not fit."""
        import torch

        from recap.clip.objective import Objective
        from recap.clip.weights import build, check_start

        config, model = self.config, replace(self.config.model, start="")
        if config.model.start:
            check_start(config.model, config.stages[0].image)
        for number, stage in enumerate(config.stages):
            with torch.device("meta"):
                module = Objective(build(model, stage.image, eos=1), config.loss, *model.normalisation)
            title = f"stage {stage_name(number, stage)}" if len(config.stages) > 1 else ""
            yield Layout(title, module, lambda name: 1.0, config.stage_settings(stage))

    def next_steps(self, run: str) -> list[str]:
        shards = shlex.join(self.config.data.shards)
        return [
            f"python -m recap.clip.evaluate {run}/exports/final retrieve --shards {shards} --member txt",
            f"python -m recap.clip.evaluate {run}/exports/final classify --help",
        ]

    def samples(self) -> int:
        """Samples of the whole training; 0 where it depends on `train.epochs` and the data's size."""
        return sum(self.config.stage_settings(stage).samples for stage in self.config.stages)

    def train(self, gang: Gang) -> int:
        from recap.clip.task import ClipTask
        from recap.train.loop import train

        config, directory = self.config, Path(gang.directory)
        shared = shared_input(config.data, gang)
        start, before = config.model.start, 0
        size = ClipTask(config, 0, shared, start).size()
        lengths = [length(config.stage_settings(stage), size) for stage in config.stages]
        for number, stage in enumerate(config.stages):  # finished stages are skipped
            alone = len(config.stages) == 1
            folder = directory if alone else directory / "stages" / stage_name(number, stage)
            done = folder / "exports" / "final"
            if not (done / "recap_clip.json").exists():
                place = gang if alone else _StageGang(gang, folder, before, sum(lengths))
                if gang.rank == 0 and not alone:  # the place where status looks for it
                    for name in ("metrics.jsonl", "checkpoints"):
                        _link(directory / name, folder / name)
                code = train(ClipTask(config, number, shared, start), config.stage_settings(stage), place)
                if code:
                    return code
            start, before = str(done), before + lengths[number]
        if gang.rank == 0 and len(config.stages) > 1:
            _link(directory / "exports" / "final", Path(start))
        return 0


class _StageGang:
    """A rank's `Gang` during one stage: files go to the stage's folder, while progress is reported for the whole
    training."""

    def __init__(self, gang: Gang, directory: Path, before: int, total: int) -> None:
        self.rank, self.world, self.local_rank, self.device = gang.rank, gang.world, gang.local_rank, gang.device
        self.directory = directory
        self._gang, self._before, self._total = gang, before, total
        directory.mkdir(parents=True, exist_ok=True)

    def stopping(self) -> int:
        return self._gang.stopping()

    def beat(self, **facts: Any) -> None:
        for name in ("samples", "checkpoint"):
            if name in facts:
                facts[name] += self._before
        if "total" in facts:
            facts["total"] = self._total
        self._gang.beat(**facts)

    def event(self, event: str, **facts: Any) -> None:
        self._gang.event(event, **facts)


def _link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, both inside the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    made.symlink_to(os.path.relpath(target, path.parent))
    made.replace(path)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.glob("*"))
