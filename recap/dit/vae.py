"""Encodes images to latents and decodes them, by any image VAE of diffusers, or in pixel space, with one interface.

    vae = Vae("models/sd-vae-ft-ema", "cuda", torch.bfloat16)
    latents = vae.scaled(vae.encode(pixels), noise)     # what the diffusion model is trained on
    pixels = vae.decode(latents)

The module imports without torch: login nodes call `vae_facts` and `vae_digest`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.base.errors import UserError
from recap.model_files import file_digest, model_folder

if TYPE_CHECKING:
    import torch

MICRO_BATCH = 8
"""Images of one forward pass. The last one is padded, so that no result depends on its neighbours."""

LOGVAR = (-30.0, 20.0)
"""The range to which diffusers clamps the logarithm of a posterior's variance."""

_WITHOUT_POSTERIOR = ("AutoencoderTiny", "AutoencoderDC", "VQModel")
_WIDTHS = ("encoder_block_out_channels", "down_block_out_channels", "block_out_channels")


@dataclass(frozen=True)
class VaeFacts:
    """Facts of a VAE's config.json.

    channels: of the latents. factor: how many pixels one latent has along each side.
    posterior: whether it gives mean and variance; else it gives a mean only.
    scale, shift: a number, or one for each channel. The diffusion model gets (latent - shift) * scale.
    """

    folder: Path
    name: str
    channels: int
    factor: int
    posterior: bool
    scale: float | list[float]
    shift: float | list[float]


def vae_facts(folder: str | Path) -> VaeFacts:
    """The facts of a VAE: its folder, a pipeline's folder with `vae` in it, or a name in the local Hugging Face cache.

    Raises:
        UserError: there is no such folder, or it holds no image VAE of diffusers.
    """
    try:
        found = model_folder(Path(folder) / "vae" if (Path(folder) / "vae").is_dir() else folder)
        config = json.loads((found / "config.json").read_text())
    except (FileNotFoundError, ValueError):
        raise UserError(
            f"config: `vae`: {folder} is not the folder of a VAE: config.json and *.safetensors, as diffusers' "
            "save_pretrained writes them, are expected there. Correct the path."
        ) from None
    widths = next((config[key] for key in _WIDTHS if key in config), None)
    if "_class_name" not in config or "latent_channels" not in config or not widths:
        what = config.get("_class_name") or config.get("model_type") or "nameless"
        raise UserError(f"config: `vae`: {folder} is a {what} model. Name an image VAE of diffusers (AutoencoderKL).")
    scale, spread = float(config.get("scaling_factor", 1.0)), config.get("latents_std")
    return VaeFacts(
        folder=found,
        name=config["_class_name"],
        channels=int(config["latent_channels"]),
        factor=int(config.get("spatial_compression_ratio") or 2 ** (len(widths) - 1)),
        posterior=config["_class_name"] not in _WITHOUT_POSTERIOR,
        scale=[scale / s for s in spread] if spread else scale,
        shift=config.get("latents_mean") or float(config.get("shift_factor") or 0.0),
    )


def vae_digest(folder: str | Path) -> str:
    """16 hex digits of a hash of config.json and weights, by which latents are identified. UserError as for
    `vae_facts`."""
    found = vae_facts(folder).folder
    files = [found / "config.json", *sorted(found.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(f"{path.name} {file_digest(path)}" for path in files).encode()).hexdigest()[:16]


class Vae:
    """A frozen VAE.

    Args:
        folder: see `vae_facts`.
        device: "cpu", "cuda", ...
        dtype: of its weights and activations. Inputs and outputs are float32 or uint8.

    Raises:
        UserError: diffusers cannot load it, or it does not encode single images.
    """

    def __init__(self, folder: str | Path, device: str | torch.device, dtype: torch.dtype) -> None:
        import torch

        facts = vae_facts(folder)
        self.channels, self.factor, self.posterior = facts.channels, facts.factor, facts.posterior
        self.digest = vae_digest(folder)
        self._device, self._dtype = torch.device(device), dtype
        self._scale = torch.tensor(facts.scale).view(-1, 1, 1).to(device)
        self._shift = torch.tensor(facts.shift).view(-1, 1, 1).to(device)
        self._model = load_vae(facts, dtype).requires_grad_(False).eval().to(self._device)
        self._probe(facts)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The posterior's mean and logarithm of variance, unscaled: float32 [N, 2 channels, H / factor, W / factor].
        For a VAE without posterior only the mean: [N, channels, ...].

        Args:
            pixels: uint8 [N, H, W, 3].
        """

        def one(x_BHWC: torch.Tensor) -> torch.Tensor:
            x_BCHW = x_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
            return _moments(self._model.encode(x_BCHW.to(self._dtype))).float()

        return self._in_micro_batches(one, pixels)

    def scaled(self, moments: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """The latents that the diffusion model gets: float32 [N, channels, h, w].

        Args:
            moments: the result of `encode`, or means only [N, channels, h, w].
            noise: standard normal [N, channels, h, w], to draw from the posterior (ignored where there are means only);
                None: the mean is taken.
        """
        moments = moments.float()
        mean, logvar = moments[:, : self.channels], moments[:, self.channels :]
        if noise is not None and logvar.shape[1]:
            mean = mean + (0.5 * logvar.clamp(*LOGVAR)).exp() * noise
        return (mean - self._shift) * self._scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [N, H, W, 3] of latents as `scaled` makes them."""

        def one(z_BCHW: torch.Tensor) -> torch.Tensor:
            z_BCHW = z_BCHW.float() / self._scale + self._shift
            return _uint8(self._model.decode(z_BCHW.to(self._dtype)).sample)

        return self._in_micro_batches(one, latents)

    def _in_micro_batches(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        import torch

        done = []
        with torch.inference_mode():
            for part in x.to(self._device).split(MICRO_BATCH):
                whole = torch.cat([part, part[:1].expand(MICRO_BATCH - len(part), *part.shape[1:])])
                done.append(function(whole)[: len(part)])
        return torch.cat(done)  # outside of inference mode, so that autograd accepts it

    def _probe(self, facts: VaeFacts) -> None:
        import torch

        side = 4
        try:
            made = tuple(
                self.encode(torch.zeros(1, side * self.factor, side * self.factor, 3, dtype=torch.uint8)).shape
            )
        except (AttributeError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"config: `vae`: {facts.folder} ({facts.name}) does not encode images: {error}") from error
        if made != (wanted := (1, self.channels * (1 + self.posterior), side, side)):
            raise UserError(
                f"config: `vae`: {facts.folder} ({facts.name}) makes latents of shape {made}, its config.json says "
                f"{wanted}. It is no VAE of single images, or not one that is supported."
            )


class Pixels:
    """Pixel space, with the interface of `Vae`. Latents are the pixels in [-1, 1]."""

    channels, factor, digest, posterior = 3, 1, "pixels", False

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = device

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same values as float32 [N, 3, H, W]. pixels: uint8 [N, H, W, 3]."""
        return pixels.to(self._device).permute(0, 3, 1, 2).float()

    def scaled(self, moments: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """float32 [N, 3, H, W] in [-1, 1]. There is no posterior; noise is ignored."""
        return moments.float() / 127.5 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [N, H, W, 3] of latents [N, 3, H, W]."""
        return _uint8(latents.to(self._device))


@dataclass(frozen=True)
class Space:
    """The latent space of a model. channels, factor: see `VaeFacts`. digest: of the VAE."""

    channels: int
    factor: int
    digest: str


def latent_space(vae: str) -> Space:
    """The space of a VAE's latents; pixel space where `vae` is empty. vae: its folder."""
    if not vae:
        return Space(Pixels.channels, Pixels.factor, Pixels.digest)
    facts = vae_facts(vae)
    return Space(facts.channels, facts.factor, vae_digest(vae))


def open_codec(folder: str, device: str | torch.device, dtype: torch.dtype) -> Vae | Pixels:
    """The VAE in a folder, or pixel space where `folder` is empty."""
    return Vae(folder, device, dtype) if folder else Pixels(device)


def load_vae(facts: VaeFacts, dtype: torch.dtype) -> Any:
    import diffusers

    kind = getattr(diffusers, facts.name, None)
    if kind is None:
        raise UserError(
            f"config: `vae`: {facts.folder} is a {facts.name}, which diffusers {diffusers.__version__} does not know."
        )
    try:
        return kind.from_pretrained(facts.folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"config: `vae`: {facts.folder} does not load: {error}") from error


def _moments(encoded: Any) -> torch.Tensor:
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.parameters
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def _uint8(x_BCHW: torch.Tensor) -> torch.Tensor:
    import torch

    return ((x_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def encoding_flops(folder: str, image: int) -> float:
    """FLOPs of encoding one image of `image` x `image` pixels, counted on the meta device; 0 in pixel space."""
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if not folder:
        return 0.0
    facts = vae_facts(folder)
    kind: Any = getattr(diffusers, facts.name)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        kind.from_config(kind.load_config(facts.folder)).encode(torch.zeros(1, 3, image, image))
    return float(counter.get_total_flops())
