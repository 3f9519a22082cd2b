"""Supervised fine-tuning as a gang job (hpc.trainer.Trainer). Torch-free until `train`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hpc.base.dotted import load
from hpc.base.errors import UserError
from hpc.trainer import Gang
from recap.data.image_version import VERSION_2
from recap.data.samples import SharedInput, column_identities, shared_input
from recap.model_files import model_folder, model_identity
from recap.sft.settings import SftConfig, check
from recap.sft.startable import check as check_start
from recap.sft.tars import data_of
from recap.train.groups import Layout, table
from recap.train.settings import check as check_training
from recap.train.settings import length_in_words

_WAIT_S = 600.0
_TEXTS_2 = (
    "template plain's line break is a token of its own, template short writes the tokenizer's BOS, a sample of tars is "
    "a shard and a key"
)


class SftTrainer:
    """`trainer: recap.sft.trainer.SftTrainer`."""

    Config: ClassVar[type] = SftConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: f"{VERSION_2}; {_TEXTS_2}"}

    def __init__(self, config: SftConfig) -> None:
        self.config = config

    def check(self, ranks: int) -> None:
        check(self.config)
        check_training(self.config.train, ranks)
        check_start(self.config)

    def identity(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if self.config.model:
            made["model"] = model_identity(self.config.model)
        beside = [s for s in self.config.data if s.kind == "columns" and (s.column or s.keep)]
        if columns := [column_identities(data_of(source)) for source in beside]:
            made["columns"] = columns
        return made

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        c, t = self.config, self.config.train
        rows = f"rows of {c.pack:,} tokens" if c.pack else f"one sample of up to {c.max_tokens:,} tokens a row"
        trained = ", ".join(c.trainable) + (f" + LoRA rank {c.lora.rank}" if c.lora.rank else "")
        return [
            ("model", f"{c.model or c.make} · template {c.template}"),
            ("data", " + ".join(f"{s.path} ({s.kind})" for s in c.data)),
            ("train", f"{length_in_words(t)}, {t.batch:,} a step · lr {t.lr:g} {t.schedule} · {t.precision} · {rows}"),
            ("trainable", trained),
        ]

    def details(self) -> list[str]:
        return table(self)

    def layouts(self) -> Iterator[Layout]:
        """The model on the meta device. One that the config makes (`config.make`) is made and deleted. Loads torch."""
        from recap.sft import model as models

        config = dataclasses.replace(self.config, attention="sdpa")  # a login node may lack GPU kernels
        with tempfile.TemporaryDirectory(prefix="sft-") as place:
            module = models.layout(start_of(config, Path(place), make=True), config)
        yield Layout("", module, lambda name: models.relative_rate(name, config), config.train)

    def next_steps(self, run: str) -> list[str]:
        model = f"captioner.model={run}/exports/final"
        return [
            f"python -m hpc.launch configs/caption/demo.yaml name={Path(run).name}-captions {model} data.shards='[…]'",
            f"python -m recap.evaluate.captioner --model {run}/exports/final     (a captioner of flags)",
        ]

    def samples(self) -> int:
        """Samples of the whole training; 0 where it depends on `train.epochs` and the data's size."""
        return self.config.train.samples

    def train(self, gang: Gang) -> int:
        from recap.sft.sources import shared_name
        from recap.sft.task import SftTask
        from recap.train.loop import train

        directory = Path(gang.directory)
        folder = start_of(self.config, directory, make=gang.rank == 0)
        shared: dict[str, SharedInput] = {}
        for name in ("data", "held_out"):
            for number, source in enumerate(getattr(self.config, name)):
                if source.kind == "columns":
                    key = shared_name(name, number)
                    data = dataclasses.replace(data_of(source), index=str(directory / f"{key}.index"))
                    found = shared_input(data, gang, f"columns/{key}")
                    assert found is not None, "they are always indexed"
                    shared[key] = found
        return train(SftTask(self.config, folder, gang.device, shared), self.config.train, gang)


def start_of(config: SftConfig, run: Path, *, make: bool = False) -> Path:
    """The folder of the checkpoint that training starts from. One that the config makes (`config.make`) is in the run's
    directory, and made once, where `make` is true."""
    if config.model:
        return model_folder(config.model)
    folder = run / "start"
    if make and not folder.exists():
        function = load(config.make, "config: `make`")
        making = run / f".tmp-start-{os.getpid()}"
        function(making, config.train.seed)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    patience = time.monotonic() + _WAIT_S
    while not folder.exists():
        if time.monotonic() > patience:
            raise UserError(f"sft: rank 0 made no {folder} in {_WAIT_S:.0f} s")
        time.sleep(0.2)
    return folder
