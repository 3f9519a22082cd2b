"""A map job that draws images with a trained DiT for a list of prompts.

    python -m hpc.launch configs/dit/sample.yaml model=runs/recap-dit-b4/exports/final prompts.file=prompts.tsv
    python -m recap.dit.write_images runs/samples OUT       # tars and a picture

An image's noise depends on a hash of (seed, key), so that all models and all guidance scales start from the same noise.
Torch-free until `setup`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from PIL import Image

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import FAILED, SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.dit import exported
from recap.dit.contact_sheet import as_png
from recap.dit.prompts import Prompts, PromptsConfig
from recap.model_files import unreadable
from recap.randomness import draw

if TYPE_CHECKING:
    import numpy as np

    from recap.dit.sampling import Sampler

SCHEDULERS = ("dpm", "ddpm")
FIELDS = [
    ("image", pa.binary()),  # PNG
    ("prompt", pa.string()),
    ("guidance", pa.float32()),
    ("seed", pa.int64()),  # of torch's CPU generator
    ("cut", pa.bool_()),  # the prompt has more tokens than the model takes
]

_PARTIAL_WAIT_S = 0.5  # wait for a further prompt before a partial batch is drawn, at the cost of a full one


@dataclass
class SampleConfig:
    """Config keys of a sampling job."""

    column: str = semantic("samples", "name of the column that is made")
    model: str = execution("", "exports/final of a DiT training, the averaged weights")
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    guidance: list[float] = semantic(
        [4.0], "guidance scales; of several each prompt gets an image, with key <key>@<scale>"
    )
    scheduler: str = semantic("dpm", "dpm (DPM-Solver++, ~20 steps) | ddpm (ancestral, 250 steps: the paper's)")
    steps: int = semantic(20, "steps of the scheduler")
    seed: int = semantic(0, "an image's own seed is a hash of this one and its key")
    batch: int = semantic(64, "images of a forward pass")
    precision: str = semantic("fp32", "fp32 | bf16 (GPUs); the VAE decodes in fp32")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.model = os.path.abspath(self.model) if self.model else ""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to draw. seed: of its noise. problem: why it cannot be drawn, "" if it can."""

    prompt: str
    guidance: float
    seed: int
    problem: str


class SampleOperator(Batched):
    """Draws one image for each prompt and guidance scale. See hpc.operator.Operator."""

    Config: ClassVar[type] = SampleConfig
    version: ClassVar[int] = 1

    def __init__(self, config: SampleConfig) -> None:
        super().__init__()
        self.config = config
        _check(config)
        self._sampler: Sampler | None = None
        self._cut: Any = None  # a function: whether a text is longer than the context
        self._device = ""
        self._last_put = 0.0

    # --- what a login node asks -------------------------------------------------------------

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self.config.prompts)

    def plan(self) -> list[Shard]:
        return self._prompts.shards(len(self.config.guidance))

    def identity(self) -> dict[str, Any]:
        return {"model": exported.identity(self.config.model)}

    def describe(self) -> list[tuple[str, str]]:
        config, about = self.config, exported.facts(self.config.model)
        scales = ", ".join(f"{g:g}" for g in config.guidance)
        images = len(self._prompts) * len(config.guidance)
        passes = math.ceil(images / config.batch) * config.steps
        return [
            ("model", f"DiT {about['size']} · {about['image']} px · {about['objective']} · {config.model}"),
            ("sampling", f"{config.scheduler}, {config.steps} steps · guidance {scales} · seed {config.seed}"),
            ("images", f"{images:,} · {passes:,} forward passes of {2 * config.batch} · {config.precision}"),
        ]

    def column(self) -> Column:
        return Column(self.config.column, list(FIELDS))

    def preflight(self) -> list[str]:
        """Problems with reading the model's files on this node."""
        try:
            exported.facts(self.config.model)
        except UserError as error:
            return [f"model: {error}"]
        return unreadable(lambda: exported.files(self.config.model))

    # --- what an engine process asks --------------------------------------------------------

    def setup(self, device: str) -> None:
        import torch

        from recap.dit.export import read
        from recap.dit.sampling import Sampler, scheduler_of
        from recap.dit.vae import open_codec

        config, model = self.config, read(self.config.model)
        scheduler = scheduler_of(config.scheduler, model.facts["objective"], model.facts["learned_sigma"])
        transformer, encoder = model.transformer.to(device), model.text_encoder.to(device)
        codec = open_codec(model.vae, device, torch.float32)
        self._sampler = Sampler(
            transformer, encoder, codec, scheduler, config.steps, config.batch, precision=config.precision
        )
        self._cut = lambda text: encoder.cut([text]) > 0

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        index = 0
        for prompt in self._prompts.of(shard):
            seed = draw(self.config.seed, prompt.key) >> 1
            for guidance in self.config.guidance:
                order = ImageRequest(prompt.text, guidance, seed, prompt.problem)
                yield Item(shard.id, index, self._key(prompt.key, guidance), order)
                index += 1

    def _key(self, prompt: str, guidance: float) -> str:
        return f"{prompt}@{guidance:g}" if len(self.config.guidance) > 1 else prompt

    def want(self) -> int:
        """Room in two batches: while one is drawn, prompts of the next one can arrive."""
        return 2 * self.config.batch - len(self._waiting)

    def put(self, item: Item) -> None:
        super().put(item)
        self._last_put = time.monotonic()

    def poll(self, timeout: float) -> list[Row]:
        if not self._waiting:
            return []
        if len(self._waiting) < self.config.batch and time.monotonic() - self._last_put < _PARTIAL_WAIT_S:
            time.sleep(min(timeout, 0.01))
            return []
        batch, self._waiting = self._waiting[: self.config.batch], self._waiting[self.config.batch :]
        return self.apply(batch)

    def apply(self, items: list[Item]) -> list[Row]:
        """Draw at most one batch."""
        from recap.dit.sampling import Wanted

        assert self._sampler is not None, "setup() comes first"
        rows = [
            Row(i.shard, i.index, i.key, SKIPPED, i.payload.problem, values={"prompt": i.payload.prompt})
            for i in items
            if i.payload.problem
        ]
        asked = [item for item in items if not item.payload.problem]
        if not asked:
            return rows
        wanted = [Wanted(i.payload.prompt, i.payload.seed, i.payload.guidance) for i in asked]
        images, finite = self._sampler.draw_batch(wanted)
        for item, image, good in zip(asked, images.numpy(), finite.tolist(), strict=True):
            rows.append(self._row(item, image, good))
        return rows

    def _row(self, item: Item, image: np.ndarray, good: bool) -> Row:
        order: ImageRequest = item.payload
        values = {
            "prompt": order.prompt, "guidance": order.guidance, "seed": order.seed, "cut": self._cut(order.prompt)
        }  # fmt: skip
        if not good:
            return Row(item.shard, item.index, item.key, FAILED, "image: not a number", values=values)
        return Row(item.shard, item.index, item.key, values=values | {"image": as_png(Image.fromarray(image))})

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m recap.dit.write_images {run} OUT"]


def _check(config: SampleConfig) -> None:
    """UserError for the first key with a value that cannot work."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: `{key}`: {why}.")

    if config.scheduler not in SCHEDULERS:
        refuse("scheduler", f"{config.scheduler!r} is unknown. Write {' or '.join(SCHEDULERS)}")
    if config.precision not in ("fp32", "bf16"):
        refuse("precision", f"{config.precision!r} is unknown. Write fp32 or bf16")
    if not 1 <= config.steps <= 1000:
        refuse("steps", f"{config.steps} is not from 1 to 1000")
    if config.batch < 1:
        refuse("batch", f"{config.batch} is less than 1")
    if not config.guidance or not all(math.isfinite(g) and g >= 0 for g in config.guidance):
        refuse("guidance", f"{config.guidance} are not scales. Write e.g. [4] or [1, 2, 4, 8]; 1 is without guidance")
    if len({f"{g:g}" for g in config.guidance}) < len(config.guidance):
        refuse("guidance", f"{config.guidance} names a scale twice")
