"""DiT training as a gang job (hpc.trainer.Trainer). Torch-free until `train`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hpc.base.errors import UserError
from hpc.trainer import Gang
from recap.data.image_version import VERSION_2
from recap.data.joined import check_division
from recap.data.samples import check_columns, check_memory, column_identities, describe_reading, shared_input
from recap.dit import startable
from recap.dit.encoder_files import make_encoder
from recap.dit.settings import DitConfig, check
from recap.dit.text_embeddings import encoder_width
from recap.dit.vae import vae_digest, vae_facts
from recap.model_files import file_digest
from recap.text_policy import TextPolicy
from recap.train.groups import Layout, table
from recap.train.settings import check as check_training
from recap.train.settings import length_in_words


class DitTrainer:
    """`trainer: recap.dit.trainer.DitTrainer`."""

    Config: ClassVar[type] = DitConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: VERSION_2}

    def __init__(self, config: DitConfig) -> None:
        self.config, self._input = config, ""

    def check(self, ranks: int) -> None:
        config, model, data = self.config, self.config.model, self.config.data
        check(config)
        check_training(config.train, ranks)
        if data.indexed:
            check_division(config.train.batch, data.streams, ranks)
        for key in ("vae", "text_encoder", "start"):
            path = getattr(model, key)
            if path and not Path(path).is_dir():
                what = f" {make_encoder(data.shards)}" if key == "text_encoder" else ""
                raise UserError(f"config: `model.{key}`: {path}: there is no such folder.{what}")
        factor = vae_facts(model.vae).factor if model.vae else 1
        if model.image % (factor * model.shape.patch):
            step = factor * model.shape.patch
            near = max(model.image // step, 1) * step
            raise UserError(
                f"config: `model.image`: {model.image} pixels do not divide by {step} (the VAE's {factor} x the "
                f"patch's {model.shape.patch}). Write {near} or {near + step}."
            )
        names = [*TextPolicy(config.text).columns, *data.embeddings.values(), *([data.latents] if data.latents else [])]
        self._input = check_columns(data, names)
        startable.check(config)

    def check_memory(self, ranks: int, run: Path, memory: int | None) -> None:
        check_memory(self.config.data, self.config.train.seed, ranks, run, memory)

    def identity(self) -> dict[str, Any]:
        """Digests of the VAE, of the text encoder and of the weights to start from, and identities of the columns."""
        model = self.config.model
        made: dict[str, Any] = {"vae": vae_digest(model.vae)} if model.vae else {}
        for key in ("text_encoder", "start"):
            if path := getattr(model, key):
                files = [
                    p for p in sorted(Path(path).rglob("*")) if p.name == "tokenizer.json" or p.suffix == ".safetensors"
                ]
                made[key] = {str(p.relative_to(path)): file_digest(p) for p in files}
        return made | column_identities(self.config.data)

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        c = self.config
        shares = " · ".join(f"{name} {weight:g}" for name, weight in c.text.weights.items())
        source = f"latents of column {c.data.latents}" if c.data.latents else "images, encoded live"
        if not c.model.vae:
            source = "pixels"
        shape, t = c.model.shape, c.train
        return [
            ("model", f"DiT {c.model.size} ({shape.layers} x {shape.width}) · {c.model.image} px · {source}"),
            ("objective", f"{c.objective.kind} · empty text {c.objective.text_dropout:.0%} · EMA {t.ema:,} samples"),
            (
                "texts",
                f"{shares} · {c.model.context} tokens · {'precomputed' if c.data.embeddings else 'encoded live'}",
            ),
            ("length", f"{length_in_words(t)}, {t.batch:,} a step · lr {t.lr:.3g} {t.schedule}"),
            ("input", self._input),
            ("reading", describe_reading(c.data, ranks) or "tars are streamed"),
        ]

    def details(self) -> list[str]:
        return table(self)

    def layouts(self) -> Iterator[Layout]:
        """The model on the meta device, with its text encoder where texts are encoded during the training. Loads
        torch."""
        import torch

        from recap.dit.model import build
        from recap.dit.objective import Objective
        from recap.dit.text_encoder import encoder_layout

        model, live = self.config.model, not self.config.data.embeddings
        facts = vae_facts(model.vae) if model.vae else None
        channels, factor = (facts.channels, facts.factor) if facts else (3, 1)
        with torch.device("meta"):
            transformer = build(
                replace(model, start=""), channels, model.image // factor, encoder_width(model.text_encoder)
            )
            encoder = encoder_layout(model.text_encoder, model.context) if live else None
            module = Objective(transformer, encoder, lambda device: None, self.config.objective)
        yield Layout("", module, lambda name: 1.0, self.config.train)

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m hpc.launch configs/dit/sample.yaml model={run}/exports/final prompts.file=prompts.tsv"]

    def samples(self) -> int:
        """Samples of the whole training; 0 where it depends on `train.epochs` and the data's size."""
        return self.config.train.samples

    def train(self, gang: Gang) -> int:
        from recap.dit.task import DitTask
        from recap.train.loop import train

        return train(DitTask(self.config, shared_input(self.config.data, gang)), self.config.train, gang)
