"""The training objectives: noise prediction (DDPM, the paper's) or rectified flow.

`Objective` is the module that the trainer core trains. Noise, times and dropped texts are drawn with the batch, by a
hash of (seed, epoch, sample), so that they are the same after a resume and on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recap.dit.settings import DIFFUSION_STEPS, ObjectiveConfig


class Flow(nn.Module):
    """Rectified flow: x_t = (1 - t) x_0 + t noise; the model predicts noise - x_0 (Esser et al., section 3)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config

    def time(self, uniform: float, normal: float) -> float:
        """A time in (0, 1), from a uniform and a normal random number: logit-normal, or uniform where time_std is 0."""
        if not self.config.time_std:
            return uniform
        return 1 / (1 + math.exp(-(self.config.time_mean + self.config.time_std * normal)))

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t [N, C, h, w], the times [N] in the range that the model takes: 0 to 1000)."""
        t = time.view(-1, 1, 1, 1)
        return (1 - t) * clean + t * noise, time * DIFFUSION_STEPS

    def losses(
        self, output: torch.Tensor, clean: torch.Tensor, noised: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """The mean squared error of each sample, [N]."""
        return (output.float() - (noise - clean)).square().mean(dim=(1, 2, 3))


class Ddpm(nn.Module):
    """DDPM with the linear schedule of 1,000 levels: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. The model predicts the
    noise.

    With twice the channels the model also predicts the variance, which is learned from the variational bound (Nichol
    and Dhariwal, Improved DDPM, section 3.1), as in DiT. The tables, float32 [1000] each, are computed in float64.
    """

    betas: torch.Tensor
    kept: torch.Tensor  # alpha bar
    posterior_variance: torch.Tensor
    of_clean: torch.Tensor
    of_noised: torch.Tensor

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        betas = torch.linspace(1e-4, 0.02, DIFFUSION_STEPS, dtype=torch.float64)
        kept = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        tables = {
            "betas": betas, "kept": kept, "posterior_variance": betas * (1 - before) / (1 - kept),
            "of_clean": betas * before.sqrt() / (1 - kept), "of_noised": (1 - before) * (1 - betas).sqrt() / (1 - kept),
        }  # fmt: skip
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def time(self, uniform: float, normal: float) -> float:
        """A level from 0 to 999, uniformly distributed."""
        return float(min(int(uniform * DIFFUSION_STEPS), DIFFUSION_STEPS - 1))

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t [N, C, h, w], the levels [N], which the model takes as they are)."""
        kept = self._at(self.kept, time)
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise, time

    def losses(
        self, output: torch.Tensor, clean: torch.Tensor, noised: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """The weighted squared error of each sample, plus the bound's term where the variance is learned, [N]."""
        output = output.float()
        learned = output.shape[1] == 2 * clean.shape[1]
        predicted = output[:, : clean.shape[1]]
        losses = (predicted - noise).square().mean(dim=(1, 2, 3))
        if self.config.min_snr:
            kept = self._at(self.kept, time).flatten()
            ratio = kept / (1 - kept)
            losses = losses * ratio.clamp(max=self.config.min_snr) / ratio
        if learned:
            losses = losses + self._bound(predicted.detach(), output[:, clean.shape[1] :], clean, noised, time)
        return losses

    def _bound(
        self,
        predicted: torch.Tensor,
        share: torch.Tensor,
        clean: torch.Tensor,
        noised: torch.Tensor,
        time: torch.Tensor,
    ) -> torch.Tensor:
        """The variational bound's term of each sample in bits per dimension, [N]. No gradient flows into the mean."""
        kept = self._at(self.kept, time)
        guess = (noised - (1 - kept).sqrt() * predicted) / kept.sqrt()
        of_clean, of_noised = self._at(self.of_clean, time), self._at(self.of_noised, time)
        truth, model = of_clean * clean + of_noised * noised, of_clean * guess + of_noised * noised
        smallest = self._at(self.posterior_variance, time.clamp(min=1)).log()  # the variance is 0 at the first level
        share = (share + 1) / 2
        log_variance = share * self._at(self.betas, time).log() + (1 - share) * smallest
        distance = 0.5 * (
            log_variance
            - smallest
            + (smallest - log_variance).exp()
            + (truth - model).square() * (-log_variance).exp()
            - 1
        )
        first = -_discretised_log_likelihood(clean, model, 0.5 * log_variance)
        term = torch.where(time.view(-1, 1, 1, 1) == 0, first, distance)
        return term.mean(dim=(1, 2, 3)) / math.log(2)

    def _at(self, values: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return values[time.long()].view(-1, 1, 1, 1)


def _discretised_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log-probability of 8-bit values in [-1, 1] under a Gaussian (Ho et al., DDPM, equation 13)."""

    def below(value: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    centred, inverse = x - mean, (-log_scale).exp()
    upper, lower = below(inverse * (centred + 1 / 255)), below(inverse * (centred - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    return torch.where(
        x < -0.999, upper.clamp(min=1e-12).log(), torch.where(x > 0.999, (1 - lower).clamp(min=1e-12).log(), inside)
    )


def diffusion(config: ObjectiveConfig) -> Flow | Ddpm:
    """The diffusion process that a config names."""
    return Flow(config) if config.kind == "flow" else Ddpm(config)


class Objective(nn.Module):
    """Sum of the losses of a micro-batch.

    Args:
        transformer: the model that is trained. text_encoder: frozen; None where its states are precomputed.
        codec: opens the VAE (recap.dit.vae) on a device; called once.

    A micro-batch holds `noise` float32 [N, C, h, w], `time` float32 [N], and

        pixels uint8 [N, H, W, 3], or latents float16 [N, C or 2C, h, w] (unscaled; moments where 2C)
        ids int64 and mask bool [N, T], or states float16 [N, T, width] and mask
        posterior float32 [N, C, h, w], where the VAE's posterior is sampled
    """

    def __init__(
        self,
        transformer: nn.Module,
        text_encoder: nn.Module | None,
        codec: Callable[[torch.device], Any],
        config: ObjectiveConfig,
    ) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder
        self._open_codec, self._codec = codec, None
        self.process = diffusion(config)

    def forward(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        clean = self.clean(micro)
        noised, level = self.process.noised(clean, micro["noise"], micro["time"])
        output = self.predict(noised, level, self.text_states(micro), micro["mask"])
        return self.process.losses(output, clean, noised, micro["noise"], micro["time"]).sum()

    def predict(
        self, noised: torch.Tensor, level: torch.Tensor, states: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The transformer's output, [N, C or 2C, h, w]."""
        return self.transformer(
            noised,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=level,
            return_dict=False,
        )[0]

    def text_states(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        """The text encoder's states of the texts, [N, T, width]."""
        if "states" in micro:
            return micro["states"].float()
        assert self.text_encoder is not None
        return self.text_encoder(micro["ids"], micro["mask"])

    @torch.no_grad()
    def clean(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        """x_0: scaled latents (or pixels in [-1, 1]), float32 [N, C, h, w]."""
        device = micro["noise"].device
        codec = self.codec(device)
        with torch.autocast(device.type, enabled=False):
            moments = micro["latents"] if "latents" in micro else codec.encode(micro["pixels"])
            stored = moments.half().float()  # rounded as in the column of latents, so that both ways agree
            return codec.scaled(stored, micro.get("posterior"))

    def codec(self, device: torch.device) -> Any:
        """The frozen VAE. It is not a submodule, since it is neither sharded nor saved."""
        if self._codec is None:
            self._codec = self._open_codec(device)
        return self._codec
