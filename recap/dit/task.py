"""DiT training as a task of the trainer core (`recap.train.task.Task`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recap.data.images import BadImage
from recap.data.joined import Joined
from recap.data.samples import PreparedSample, Samples, SharedInput, image_of
from recap.dit.encoder_files import text_encoder_digest
from recap.dit.flops import Flops
from recap.dit.grid import Grid
from recap.dit.images import centre_crop, flipped
from recap.dit.model import build
from recap.dit.objective import Objective, diffusion
from recap.dit.settings import DitConfig
from recap.dit.stored import Stored
from recap.dit.text_encoder import TextEncoder
from recap.dit.vae import latent_space, open_codec
from recap.model_files import weights_digest
from recap.randomness import draw, mixed
from recap.text_policy import TextPolicy
from recap.train.task import Batch, EvaluationContext


@dataclass
class Prepared:
    """A usable sample.

    image: pixels uint8 [H, W, 3], or a latent float16 [C or 2C, h, w].
    text: "" if it is dropped. column: the text's.
    states: the text's embeddings float16 [tokens, width], where they are precomputed.
    noise, posterior: standard normal float32 [C, h, w]. time: see `Objective`.
    """

    image: np.ndarray
    text: str
    column: str
    states: np.ndarray | None
    noise: np.ndarray
    posterior: np.ndarray | None
    time: float


class DitTask:
    """Images and texts from tars and columns.

    Args:
        shared: files that rank 0 made about tars and columns; None: they are read here.
    """

    def __init__(self, config: DitConfig, shared: SharedInput | None) -> None:
        self.config = config
        self.space = latent_space(config.model.vae)
        self.text_encoder = TextEncoder(config.model.text_encoder, config.model.context)
        self.side = config.model.image // self.space.factor
        self.policy = TextPolicy(config.text)
        self._seed = mixed(config.train.seed, 0)
        self._stored = Stored(config)
        self._process = diffusion(config.objective)
        self._grid = Grid(config, self.text_encoder)
        self._flops = Flops(config, self.space, self.side, self.text_encoder)
        self._empty: np.ndarray | None = None  # embeddings of the empty text
        data = config.data
        names = [*self.policy.columns, *data.embeddings.values()]
        names += [name for name in (data.latents or data.pixels,) if name]
        self.samples: Samples[Prepared] = Samples(
            data, names, self._seed, shared, data.latents or data.pixels, config.train.samples, self._prepare
        )

    # --- the model --------------------------------------------------------------------------

    def module(self) -> nn.Module:
        model = build(self.config.model, self.space.channels, self.side, self.text_encoder.width)
        live_text = None if self.config.data.embeddings else self.text_encoder
        return Objective(
            model,
            live_text,
            lambda device: open_codec(self.config.model.vae, device, torch.float32),
            self.config.objective,
        )

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        assert isinstance(module, Objective)
        transformer: Any = module.transformer
        return transformer.transformer_blocks

    def rate(self, name: str) -> float:
        return 1.0

    def all_used(self) -> bool:
        return True

    def identity(self) -> str:
        model = {**asdict(self.config.model), "vae": self.space.digest, "start": "", "text_encoder": ""}
        start = Path(self.config.model.start) if self.config.model.start else None
        begun = weights_digest(start) if start else f"seed {self.config.train.seed}"
        encoder = text_encoder_digest(self.config.model.text_encoder)
        content = json.dumps([begun, encoder, model, self.config.objective.kind, self.samples.digest()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def manifests(self) -> dict[str, str]:
        return self.samples.manifests

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        from recap.dit.export import write

        model = build(self.config.model, self.space.channels, self.side, self.text_encoder.width)
        model.load_state_dict({name.removeprefix("transformer."): tensor.cpu() for name, tensor in weights.items()})
        write(self.config, model, folder)

    def evaluate(self, module: nn.Module, context: EvaluationContext) -> dict[str, Any]:
        assert isinstance(module, Objective)
        return self._grid.draw(module, context)

    # --- the data ---------------------------------------------------------------------------

    def size(self) -> int:
        return self.samples.size()

    def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
        taken = self.samples.take(first, count, rank, world)
        step = self.config.micro_batch or len(taken)
        micro = [self._micro(taken[start : start + step]) for start in range(0, len(taken), step)]
        tokens = sum(len(m["time"]) * (self._patches + m["mask"].shape[1]) for m in micro)
        padding = sum(int((~m["mask"]).sum()) for m in micro)
        rejected = [r for sample in taken for r in sample.rejected]
        flops = sum(len(m["time"]) * self._flops.image(m["mask"].shape[1]) for m in micro)
        return Batch(micro, len(taken), tokens, tokens - padding, [t.name for t in taken], rejected, flops=flops)

    def close(self) -> None:
        self.samples.close()

    def _prepare(self, sample: Joined, epoch: int) -> Prepared | str:
        drawn = self.policy.draw(sample.columns, self._seed, epoch, sample.name)
        if not drawn:
            return "text: every column is empty"
        objective = self.config.objective
        noise = np.random.Generator(np.random.Philox(key=draw(self._seed, epoch, sample.name, "diffusion")))
        dropped = noise.random() < objective.text_dropout
        time = self._process.time(noise.random(), noise.standard_normal())
        shape = (self.space.channels, self.side, self.side)
        mirrored = objective.flip and flipped(self._seed, epoch, sample.name)
        try:
            image = self._latent(sample, mirrored) if self.config.data.latents else self._pixels(sample, mirrored)
            states = self._states(sample, drawn[0].column, dropped) if self.config.data.embeddings else None
        except BadImage as error:
            return error.reason
        return Prepared(
            image, "" if dropped else drawn[0].text, drawn[0].column, states,
            noise=noise.standard_normal(shape, dtype=np.float32), time=time,
            posterior=noise.standard_normal(shape, dtype=np.float32) if objective.posterior == "sample" else None,
        )  # fmt: skip

    def _pixels(self, sample: Joined, mirrored: bool) -> np.ndarray:
        pixels = centre_crop(image_of(sample, self.config.data), self.config.model.image)
        return pixels[:, ::-1].copy() if mirrored else pixels

    def _latent(self, sample: Joined, mirrored: bool) -> np.ndarray:
        """The stored latent of a sample's image, or of the mirrored image."""
        name = self.config.data.latents
        blob = sample.columns[str(name)]
        if blob is None:
            raise BadImage("latent: missing")
        found = self._stored.latent(blob, f"data: column {name}: sample {sample.name}")
        return found[1 if mirrored else 0]

    def _states(self, sample: Joined, column: str, dropped: bool) -> np.ndarray:
        if dropped:
            if self._empty is None:
                states, mask = self.text_encoder.encode([""])
                self._empty = states[0][mask[0]].half().numpy()
            return self._empty
        name = self.config.data.embeddings[column]
        blob = sample.columns[name]
        if blob is None:
            raise BadImage("embedding: missing")
        return self._stored.states(blob, f"data: column {name}: sample {sample.name}")

    def _micro(self, taken: list[PreparedSample[Prepared]]) -> dict[str, torch.Tensor]:
        """The argument of `Objective.forward` for N samples. T is the length of the longest text, rounded up to a
        multiple of 8.

        pixels: uint8 [N, H, W, 3], or latents: float16 [N, C or 2C, h, w].
        noise: float32 [N, C, h, w]. posterior: likewise, where the VAE's posterior is sampled.
        time: float32 [N], in [0, 1] for flow, the number of a level for DDPM.
        states: float16 [N, T, width], or ids: int64 [N, T]. mask: bool [N, T], True at tokens.
        """
        ready = [t.value for t in taken]
        kind = "latents" if self.config.data.latents else "pixels"
        micro = {kind: torch.from_numpy(np.stack([r.image for r in ready]))}
        micro["noise"] = torch.from_numpy(np.stack([r.noise for r in ready]))
        micro["time"] = torch.tensor([r.time for r in ready], dtype=torch.float32)
        if self.config.objective.posterior == "sample":
            micro["posterior"] = torch.from_numpy(np.stack([r.posterior for r in ready if r.posterior is not None]))
        states = [r.states for r in ready if r.states is not None]
        return micro | (_padded(states) if states else self.text_encoder.tokens([r.text for r in ready]))

    @property
    def _patches(self) -> int:
        return (self.side // self.config.model.shape.patch) ** 2


def _padded(states: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Embeddings of different lengths as `states`, float16 [N, T, width], and `mask`, bool [N, T]."""
    length = -(-max(len(s) for s in states) // 8) * 8
    out = np.zeros((len(states), length, states[0].shape[1]), dtype=np.float16)
    mask = np.zeros((len(states), length), dtype=bool)
    for row, state in enumerate(states):
        out[row, : len(state)], mask[row, : len(state)] = state, True
    return {"states": torch.from_numpy(out), "mask": torch.from_numpy(mask)}
