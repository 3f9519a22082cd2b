"""A map job that encodes each image by a VAE once, and writes a column of latents.

    python -m hpc.launch configs/data/latents.yaml data.shards=[...] vae=models/sd-vae-ft-ema side=256

A training with `data.latents` (a column of this run) neither encodes images nor reads tars. Torch-free until `setup`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import OK, SKIPPED, Batched, Column, Item, Row, Shard
from recap.data.block_items import IndexedDataConfig
from recap.data.image_version import VERSION_2
from recap.data.images import BadImage, EncodedImage
from recap.data.pictures import FoundImage
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import ImageJob
from recap.data.tars import READING_2
from recap.dit.images import centre_of
from recap.dit.storage import total_size_in_words
from recap.dit.tensor_blob import fits_fp16, pack, unpack
from recap.dit.vae import MICRO_BATCH, vae_digest, vae_facts
from recap.model_files import unreadable

if TYPE_CHECKING:
    from recap.dit.vae import Vae

KINDS = ("mean", "moments")
PRECISIONS = ("fp32", "bf16", "fp16")

_AT_ONCE = 4 * MICRO_BATCH  # images that the VAE encodes in one call
_AHEAD = 3 * _AT_ONCE  # images that are held, and decoded in threads while the VAE works
_PARTIAL_WAIT_S = 0.05  # how long to wait for a further image before fewer than _AT_ONCE are encoded


@dataclass
class LatentsConfig:
    """Config keys of a job that makes latents."""

    column: str = semantic("latents", "name of the column that is made")
    data: IndexedDataConfig = field(default_factory=IndexedDataConfig)
    vae: str = execution("", "folder of a VAE that diffusers loads (AutoencoderKL)")
    side: int = semantic(256, "pixels of the centre crop's side")
    kind: str = semantic("mean", "mean | moments (mean and logarithm of variance, to draw from; twice as large)")
    flip: bool = semantic(True, "also encode the mirrored image; twice as large")
    precision: str = semantic("fp32", "of the VAE: fp32 | bf16 (GPUs) | fp16; latents are stored in fp16")
    threads: int = execution(4, "images decoded at the same time")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        if self.vae and Path(self.vae).is_dir():
            self.vae = os.path.abspath(self.vae)


class LatentsOperator(ImageJob, Batched):
    """Writes one latent for each sample. See hpc.operator.Operator."""

    Config: ClassVar[type] = LatentsConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: f"{VERSION_2}; {READING_2}"}

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind not in KINDS:
            raise UserError(f"config: `kind`: {config.kind!r} is unknown. Write {' or '.join(KINDS)}.")
        if config.precision not in PRECISIONS:
            raise UserError(f"config: `precision`: {config.precision!r} is unknown. Write {', '.join(PRECISIONS)}.")
        self._shards: list[Shard] = []
        self._vae: Vae | None = None
        self._decoders: ThreadPoolExecutor | None = None
        self._held: deque[tuple[Item, Future[tuple[np.ndarray, str]]]] = deque()
        self._last_put = 0.0

    # --- what a login node asks -------------------------------------------------------------

    def plan(self) -> list[Shard]:
        self._shards = super().plan()
        return self._shards

    def identity(self) -> dict[str, Any]:
        self._shape()
        return {"vae": vae_digest(self.config.vae)}

    def describe(self) -> list[tuple[str, str]]:
        config, shape = self.config, self._shape()
        stored = f"{shape[0]} views of " * (shape[0] > 1) + " x ".join(map(str, shape[1:])) + " in fp16"
        size = len(self._packed(np.zeros(shape, np.float16)))
        return [
            ("input", self.input),
            ("latents", f"{config.vae} · {config.precision} · centre {config.side} px · {config.kind}"),
            ("", f"{stored}: {size / 1000:,.1f} kB an image, {total_size_in_words(size, 'images', self._shards)}"),
        ]

    def column(self) -> Column:
        return Column(self.config.column, [("latent", pa.binary()), (FIELD, pa.string())])

    def preflight(self) -> list[str]:
        """Problems with reading the VAE's files on this node."""
        return unreadable(lambda: vae_facts(self.config.vae).folder.glob("*.safetensors"))

    def _shape(self) -> tuple[int, int, int, int]:
        """(views, channels, height, width) of a stored latent. UserError where the VAE cannot make it."""
        config = self.config
        if not config.vae:
            raise UserError("config: `vae`: missing. Name the folder of a VAE that diffusers loads.")
        facts = vae_facts(config.vae)
        if config.side < facts.factor or config.side % facts.factor:
            near = max(round(config.side / facts.factor), 1) * facts.factor
            raise UserError(
                f"config: `side`: {config.side} pixels do not divide by {facts.factor}, this VAE's pixels a latent. "
                f"Write {near}."
            )
        if config.kind == "moments" and not facts.posterior:
            raise UserError(f"config: `kind`: {config.vae} ({facts.name}) has no posterior. Write mean.")
        side = config.side // facts.factor
        return 1 + config.flip, facts.channels * (2 if config.kind == "moments" else 1), side, side

    # --- what an engine process asks --------------------------------------------------------

    def setup(self, device: str) -> None:
        import torch

        from recap.dit.vae import Vae

        precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision]
        self._vae = Vae(self.config.vae, device, precision)
        self._decoders = ThreadPoolExecutor(max(self.config.threads, 1), thread_name_prefix="decoder")

    def want(self) -> int:
        return _AHEAD - len(self._held)

    def put(self, item: Item) -> None:
        assert self._decoders is not None, "setup() comes first"
        self._held.append((item, self._decoders.submit(self._pixels, item.payload)))
        self._last_put = time.monotonic()

    def poll(self, timeout: float) -> list[Row]:
        if len(self._held) < _AT_ONCE and self._held and time.monotonic() - self._last_put < _PARTIAL_WAIT_S:
            time.sleep(min(timeout, 0.005))  # wait for a full micro-batch, which costs the same as a partial one
            return []
        rows: list[Row] = []
        good: list[tuple[Item, np.ndarray, str]] = []
        for _ in range(min(_AT_ONCE, len(self._held))):
            item, decoding = self._held.popleft()
            try:
                good.append((item, *decoding.result()))
            except BadImage as error:
                rows.append(_skipped(item, error.reason, error.detail))
        return rows + self._encoded(good) if good else rows

    def close(self) -> None:
        if self._decoders is not None:
            self._decoders.shutdown()

    def _pixels(self, found: FoundImage) -> tuple[np.ndarray, str]:
        """(the pixels uint8 [side, side, 3], what is odd about the image or "")."""
        if found.image is None:
            raise BadImage(found.reason, found.detail)
        encoded = EncodedImage(found.image)
        return centre_of(encoded, self.config.side), encoded.note

    def _encoded(self, good: list[tuple[Item, np.ndarray, str]]) -> list[Row]:
        import torch

        assert self._vae is not None, "setup() comes first"
        pixels = torch.from_numpy(np.stack([p for _, p, _ in good]))
        views = [pixels, pixels.flip(2)] if self.config.flip else [pixels]
        moments = torch.stack([self._vae.encode(view) for view in views], 1)
        kept = moments if self.config.kind == "moments" else moments[:, :, : self._vae.channels]
        return [self._row(item, note, latent) for (item, _, note), latent in zip(good, kept.cpu().numpy(), strict=True)]

    def _row(self, item: Item, note: str, latent: np.ndarray) -> Row:
        if not fits_fp16(latent):
            return _skipped(item, "latent: NaN, or too large for fp16")
        values = {"latent": self._packed(latent.astype(np.float16)), FIELD: digest(item.payload.image)}
        return Row(item.shard, item.index, item.key, OK, note, values=values)

    def _packed(self, latent: np.ndarray) -> bytes:
        return pack("latent", latent, self._about)

    @cached_property
    def _about(self) -> dict[str, str]:
        return {"vae": vae_digest(self.config.vae), "kind": self.config.kind, "precision": self.config.precision}

    def next_steps(self, run: str) -> list[str]:
        name = self.config.column
        return [
            f"python -m hpc.launch configs/dit/recap_b4.yaml data.latents={name} data.columns.{name}.run={run} "
            f"data.columns.{name}.field=latent"
        ]


def _skipped(item: Item, reason: str, detail: str = "") -> Row:
    made_of = {FIELD: digest(item.payload.image)}
    return Row(item.shard, item.index, item.key, SKIPPED, reason, detail, values=made_of)


def read_latent(blob: bytes) -> tuple[np.ndarray, dict[str, str]]:
    """A value of the column: (float16 [views, channels or 2 channels, h, w], facts). It is unscaled; the second view is
    the mirrored image. The facts are vae (its digest), kind (mean | moments) and precision.

    Raises:
        UserError: the value is not a latent.
    """
    return unpack(blob, "latent")
