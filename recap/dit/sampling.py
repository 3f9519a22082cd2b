"""Images from texts: guided sampling with diffusers' schedulers, the same whatever the batch.

The noise of an image comes from its own seed, and every forward pass has one fixed shape (the batch is padded), so that an
image depends neither on its neighbours nor on how many workers share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from recap.dit.settings import DIFFUSION_STEPS

SCHEDULERS = ("dpm", "ddpm")


@dataclass(frozen=True)
class Wanted:
    """One image. seed: of all its noise."""

    prompt: str
    seed: int
    guidance: float


def scheduler_of(kind: str, objective: str, learned_sigma: bool) -> Any:
    """A diffusers scheduler: `dpm` (DPM-Solver++, second order, deterministic) or `ddpm` (ancestral, the paper's).

    objective: flow or ddpm. `ddpm` for a model that learned its variance uses it, as DiT's sampler does.
    """
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

    if kind == "dpm" and objective == "flow":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=DIFFUSION_STEPS, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    linear = {"num_train_timesteps": DIFFUSION_STEPS, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if kind == "dpm":
        return DPMSolverMultistepScheduler(**linear, timestep_spacing="trailing")
    variance = "learned_range" if learned_sigma else "fixed_small"
    return DDPMScheduler(**linear, variance_type=variance, clip_sample=False, timestep_spacing="trailing")


class Sampler:
    """Draws images with a trained model.

    Args:
        transformer, text_encoder: on one device, in evaluation mode.
        codec: decodes latents (recap.dit.vae).
        scheduler: see `scheduler_of`; steps: how many it takes.
        batch: images of a forward pass; decides the rounding, so it belongs to what is made.
        stopping: asked between steps; true ends the drawing with None.
    """

    def __init__(
        self,
        transformer: Any,
        text_encoder: Any,
        codec: Any,
        scheduler: Any,
        steps: int,
        batch: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.transformer, self.text_encoder, self.codec = transformer, text_encoder, codec
        self.scheduler, self.steps, self.batch, self.stopping = scheduler, steps, batch, stopping
        self._channels = int(transformer.config.in_channels)
        self._side = int(transformer.config.sample_size)

    @torch.no_grad()
    def draw(self, wanted: Sequence[Wanted]) -> torch.Tensor | None:
        """uint8 [N, H, W, 3] on the CPU."""
        made = []
        for first in range(0, len(wanted), self.batch):
            part = list(wanted[first : first + self.batch])
            latents = self.latents(part + [part[-1]] * (self.batch - len(part)))
            if latents is None:
                return None
            made.append(self.codec.decode(latents)[: len(part)].cpu())
        return torch.cat(made)

    @torch.no_grad()
    def latents(self, wanted: Sequence[Wanted]) -> torch.Tensor | None:
        """Latents, as the model was trained on, of exactly one batch: float32 [N, C, h, w]."""
        device = next(self.transformer.parameters()).device
        generators = [torch.Generator("cpu").manual_seed(w.seed) for w in wanted]
        shape = (self._channels, self._side, self._side)
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
        states, mask = self.text_encoder.encode(
            ["" for _ in wanted] + [w.prompt for w in wanted], pad_to=self.text_encoder.context
        )
        guidance = torch.tensor([w.guidance for w in wanted], device=device).view(-1, 1, 1, 1)
        self.scheduler.set_timesteps(self.steps, device=device)
        x = x * self.scheduler.init_noise_sigma
        ancestral = type(self.scheduler).__name__ == "DDPMScheduler"
        for time in self.scheduler.timesteps:
            if self.stopping():
                return None
            output = self.transformer(
                self.scheduler.scale_model_input(torch.cat([x, x]), time), encoder_hidden_states=states,
                encoder_attention_mask=mask, timestep=time.expand(2 * len(wanted)), return_dict=False,
            )[0].float()  # fmt: skip
            predicted = self._guided(output, guidance, variance=ancestral)
            extra = {"generator": generators} if ancestral else {}
            x = self.scheduler.step(predicted, time, x, return_dict=False, **extra)[0]
        return x

    def _guided(self, output: torch.Tensor, guidance: torch.Tensor, variance: bool) -> torch.Tensor:
        """Away from the empty text (Ho and Salimans). The learned variance is the text's own; only `ddpm` reads it."""
        without, with_text = output.chunk(2)
        noise = without[:, : self._channels] + guidance * (with_text - without)[:, : self._channels]
        if output.shape[1] == self._channels or not variance:
            return noise
        return torch.cat([noise, with_text[:, self._channels :]], dim=1)
