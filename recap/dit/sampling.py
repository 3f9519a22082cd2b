"""Guided sampling of images with diffusers' schedulers, independent of the batch.

The noise of an image depends on its own seed only, and every forward pass has the same shape (batches are padded), so
that an image does not depend on its neighbours or on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from recap.dit.settings import DIFFUSION_STEPS


@dataclass(frozen=True)
class Wanted:
    """One image to draw. seed: of all its noise."""

    prompt: str
    seed: int
    guidance: float


def scheduler_of(kind: str, objective: str, learned_sigma: bool) -> Any:
    """A diffusers scheduler.

    Args:
        kind: `dpm` (DPM-Solver++, second order, deterministic) or `ddpm` (ancestral; for noise prediction DiT's own
            sampler, with the learned variance where there is one).
        objective: flow or ddpm.
    """
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    linear = {"num_train_timesteps": DIFFUSION_STEPS, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    flow = {
        "num_train_timesteps": DIFFUSION_STEPS, "prediction_type": "flow_prediction", "use_flow_sigmas": True
    }  # fmt: skip
    if kind == "dpm":
        about = flow if objective == "flow" else linear | {"timestep_spacing": "trailing"}
        return DPMSolverMultistepScheduler(**about)
    if objective == "flow":  # the first-order stochastic solver draws from DDPM's posterior (Lu et al., DPM-Solver++)
        return DPMSolverMultistepScheduler(**flow, algorithm_type="sde-dpmsolver++", solver_order=1)
    variance = "learned_range" if learned_sigma else "fixed_small"
    # linspace is ADM's respacing, from level 999 to level 0.
    return DDPMScheduler(**linear, variance_type=variance, clip_sample=False, timestep_spacing="linspace")


class Sampler:
    """Draws images with a model.

    Args:
        transformer: a PixArtTransformer2DModel, or what is called like one and has its config and parameters.
        text_encoder: has the methods `encode` and `context` of recap.dit.text_encoder.TextEncoder.
        codec: decodes latents (recap.dit.vae).
        scheduler: see `scheduler_of`; steps: how many it takes.
        batch: images of a forward pass. It affects rounding, so that it is part of a job's identity.
        between: called between steps; it may raise to stop.
        precision: fp32, or bf16: autocast for text encoder and transformer (weights, solver and VAE are not changed).
    """

    def __init__(
        self,
        transformer: Any,
        text_encoder: Any,
        codec: Any,
        scheduler: Any,
        steps: int,
        batch: int,
        between: Callable[[], None] = lambda: None,
        precision: str = "fp32",
    ) -> None:
        self.transformer, self.text_encoder, self.codec = transformer, text_encoder, codec
        self.scheduler, self.steps, self.batch, self.between = scheduler, steps, batch, between
        self._device = next(transformer.parameters()).device
        self._lowered = precision == "bf16"
        self._channels = int(transformer.config.in_channels)
        self._side = int(transformer.config.sample_size)
        self._learned = scheduler.config.get("variance_type") == "learned_range"

    def draw(self, wanted: Sequence[Wanted]) -> torch.Tensor:
        """The images, uint8 [N, H, W, 3], on the CPU."""
        parts = [wanted[first : first + self.batch] for first in range(0, len(wanted), self.batch)]
        return torch.cat([self.draw_batch(part)[0] for part in parts])

    @torch.no_grad()
    def draw_batch(self, wanted: Sequence[Wanted]) -> tuple[torch.Tensor, torch.Tensor]:
        """(images of at most one batch uint8 [N, H, W, 3], whether each is finite bool [N]), on the CPU."""
        latents = self.latents([*wanted, *[wanted[-1]] * (self.batch - len(wanted))])[: len(wanted)]
        finite = latents.isfinite().flatten(1).all(1)
        with torch.autocast(self._device.type, enabled=False):  # a training that draws samples may be in bf16 autocast
            return self.codec.decode(latents).cpu(), finite.cpu()

    @torch.no_grad()
    def latents(self, wanted: Sequence[Wanted]) -> torch.Tensor:
        """The (scaled) latents of exactly one batch, float32 [N, C, h, w]."""
        generators = [torch.Generator("cpu").manual_seed(w.seed) for w in wanted]
        shape = (self._channels, self._side, self._side)
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self._device)
        guidance = torch.tensor([w.guidance for w in wanted], device=self._device).view(-1, 1, 1, 1)
        self.scheduler.set_timesteps(self.steps, device=self._device)
        x = x * self.scheduler.init_noise_sigma
        with self._precision():
            states, mask = self.text_encoder.encode(
                ["" for _ in wanted] + [w.prompt for w in wanted], pad_to=self.text_encoder.context
            )
        for time in self.scheduler.timesteps:
            self.between()
            twice = self.scheduler.scale_model_input(torch.cat([x, x]), time)
            with self._precision():
                output = self.transformer(
                    twice, encoder_hidden_states=states, encoder_attention_mask=mask,
                    timestep=time.expand(len(twice)), return_dict=False,
                )[0].float()  # fmt: skip
            x = self.scheduler.step(self._guided(output, guidance), time, x, return_dict=False, generator=generators)[0]
        return x

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._lowered else nullcontext()

    def _guided(self, output: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (Ho and Salimans). A learned variance is taken from the pass with the text; only the
        scheduler `ddpm` uses it."""
        without, with_text = output.chunk(2)
        channels = self._channels
        noise = without[:, :channels] + guidance * (with_text - without)[:, :channels]
        return torch.cat([noise, with_text[:, channels:]], dim=1) if self._learned else noise
