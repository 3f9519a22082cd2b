"""DiT training: a step from latents against encoding live and against diffusers' way; checkpoints; averages.

    python -m benchmarks.dit                     CPU, some minutes; every figure
    python -m benchmarks.dit --check             the same, and exits with 1 where a target is missed
    python -m benchmarks.dit --gpu               also B/4 and XL/2 at 256 px on one GPU: images/s, MFU
    python -m benchmarks.dit --json out.json

step        seconds of a training step of DiT-B/4 with Stable Diffusion's VAE shape and CLIP-L's text tower, random
            weights, side by side in one run (A-B-C-C-B-A):
            latents    ours: latents and texts from columns, texts as long as the batch's longest
            live       ours, images encoded in the step
            diffusers  the loop of diffusers' train_text_to_image: VAE and text encoder live, texts padded to 77, the
                       loss read every step, EMAModel
checkpoint  how long a save holds up the loop: torch.save + fsync against ours (staged, written beside the loop).
average     seconds of a moving average of B/4's weights: ours (one foreach call) against diffusers' EMAModel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.parts import main
from benchmarks.sft import checkpoint
from recap.dit.model import build
from recap.dit.objective import Objective
from recap.dit.settings import DitModelConfig, ObjectiveConfig
from recap.dit.vae import MICRO_BATCH
from recap.train.parallel import peak_flops
from recap.train.state import Ema

WORDS, FACTOR, CHANNELS = 49_408, 8, 4
TARGETS = {
    "step, diffusers / latents": (2.0, "least"),
    "checkpoint stall, ours / torch.save": (0.5, "most"),
    "gpu step, diffusers / latents, B/4": (2.0, "least"),
    "gpu MFU, B/4": (0.4, "least"),
}


class Text(nn.Module):
    """CLIP-L's text tower, random, behind the interface of `recap.dit.text_encoder.TextEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        self.model = CLIPTextModel(CLIPTextConfig(vocab_size=WORDS, max_position_embeddings=77, **shape))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask.long())[0]


class Codec:
    """Stable Diffusion's VAE shape, random, behind the interface of `recap.dit.vae.Vae`."""

    def __init__(self, device: str) -> None:
        from diffusers import AutoencoderKL

        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        self.model = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks).to(device)
        self.model.requires_grad_(False)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
            return torch.cat([self.model.encode(part).latent_dist.parameters for part in x.split(MICRO_BATCH)])

    def scaled(self, moments: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        assert noise is not None, "`encode` gives moments"
        mean, logvar = moments.chunk(2, 1)
        return (mean + (0.5 * logvar).exp() * noise) * 0.18215


def micro_batch(count: int, side: int, device: str, live: bool, length: int) -> dict[str, torch.Tensor]:
    """A batch as DitTask makes it, with random values. live: images uint8 [count, side, side, 3], else latents, float16
    [count, 8, side / 8, side / 8] (means and log-variances). length: tokens a text."""
    latent = (count, CHANNELS, side // FACTOR, side // FACTOR)
    made = {
        "noise": torch.randn(latent), "posterior": torch.randn(latent), "time": torch.rand(count),
        "ids": torch.randint(0, WORDS, (count, length)), "mask": torch.ones(count, length, dtype=torch.bool),
    }  # fmt: skip
    if live:
        made["pixels"] = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    else:
        made["latents"] = torch.cat([torch.randn(latent), torch.full(latent, -6.0)], 1).half()
    return {name: tensor.to(device) for name, tensor in made.items()}


class Ours:
    """The phases of recap.train.loop on one rank: gradients, fused or foreach AdamW, average; nothing is read back."""

    def __init__(self, model: nn.Module, text: nn.Module, codec: Codec, batch: dict[str, torch.Tensor]) -> None:
        self.module = Objective(model, text, lambda device: codec, ObjectiveConfig())
        self.device = batch["noise"].device.type
        cuda = self.device == "cuda"
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.0, fused=cuda or None)
        self.average, self.batch = Ema(self.module, 10_000 * len(batch["noise"])), batch

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.module(self.batch)
        (loss / len(self.batch["noise"])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(len(self.batch["noise"]))


class Diffusers:
    """The inner loop of diffusers' examples/text_to_image/train_text_to_image.py, with its defaults, on this model."""

    def __init__(self, model: nn.Module, text: Text, codec: Codec, batch: dict[str, torch.Tensor]) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.model, self.text, self.vae, self.batch = model, text, codec.model, batch
        self.scheduler = DDPMScheduler()
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        self.average = EMAModel(model.parameters())
        self.device = batch["noise"].device.type

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            pixels = self.batch["pixels"].permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = self.vae.encode(pixels).latent_dist.sample() * 0.18215
            noise = torch.randn_like(latents)
            times = torch.randint(0, 1000, (len(latents),), device=latents.device)
            noised = self.scheduler.add_noise(latents, noise, times)
            states = self.text(self.batch["ids"], self.batch["mask"])
            output = self.model(
                noised, encoder_hidden_states=states, encoder_attention_mask=self.batch["mask"], timestep=times,
                return_dict=False,
            )[0]  # fmt: skip
            loss = nn.functional.mse_loss(output.float(), noise.float(), reduction="mean")
        loss.item()  # gathered for the progress bar in every step
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.model.parameters())


def transformer(size: str, side: int, device: str) -> Any:
    return build(DitModelConfig(size=size), CHANNELS, side // FACTOR, 768).to(device)


def seconds(ways: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """The least seconds that each way takes, over rounds that run all of them forth and back. One more round, the
    first, does not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in [*ways, *reversed(ways)]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            ways[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            found[name] += [clock() - start] if number else []
    return {name: min(values) for name, values in found.items()}


def step(size: str = "B/4", side: int = 128, batch: int = 4, device: str = "cpu", rounds: int = 2) -> dict[str, float]:
    """Seconds of a step. Texts of 40 tokens (the longest of a trimmed batch) for ours, 77 for diffusers' padding."""
    torch.manual_seed(0)
    text, codec = Text().to(device), Codec(device)
    models = [transformer(size, side, device) for _ in range(3)]
    if device == "cuda":
        for model in models[:2]:
            for block in model.transformer_blocks:
                block.compile()
    ways: dict[str, Callable[[], None]] = {
        "latents": Ours(models[0], text, codec, micro_batch(batch, side, device, False, 40)),
        "live": Ours(models[1], text, codec, micro_batch(batch, side, device, True, 40)),
        "diffusers": Diffusers(models[2], text, codec, micro_batch(batch, side, device, True, 77)),
    }
    found = seconds(ways, rounds, device)
    return {
        **{f"step s, {name}": value for name, value in found.items()},
        "step, live / latents": found["live"] / found["latents"],
        "step, diffusers / latents": found["diffusers"] / found["latents"],
    }


def average() -> dict[str, float]:
    """Seconds of one update of the moving average of B/4's weights."""
    from diffusers.training_utils import EMAModel

    model = transformer("B/4", 256, "cpu")
    ours, theirs = Ema(model, 1_000_000), EMAModel(model.parameters())
    found = seconds({"ours": lambda: ours.update(1), "EMAModel": lambda: theirs.step(model.parameters())}, 5, "cpu")
    return {
        **{f"average s, {name}": value for name, value in found.items()},
        "average, EMAModel / ours": found["EMAModel"] / found["ours"],
    }


def on_gpu() -> dict[str, float]:
    """B/4 and XL/2 at 256 px: images/s and MFU from latents, and the ratio to diffusers' loop at the same batch."""
    found = {}
    peak = peak_flops(torch.device("cuda"))
    for size, batch, gflop in (("B/4", 512, 42.0), ("XL/2", 64, 860.0)):  # fwd + bwd an image, 40 text tokens
        torch.cuda.empty_cache()
        made = step(size, 256, batch, "cuda", 4)
        rate = batch / made["step s, latents"]
        found[f"gpu images/s, {size}"] = rate
        found[f"gpu step, diffusers / latents, {size}"] = made["step, diffusers / latents"]
        if peak:
            found[f"gpu MFU, {size}"] = rate * gflop * 1e9 / peak
    return found


if __name__ == "__main__":
    main(__doc__, [step, average, checkpoint], on_gpu, TARGETS)
