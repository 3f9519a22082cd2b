"""Train the small VAE that ships with the project: `AutoencoderKL`, 0.23 M parameters, 64 px to 4 x 16 x 16.

    python -m recap.demo.train_vae OUT [--steps 5600] [--threads 1] [--seed 0]
    python -m recap.demo.train_vae recap/demo/vae --steps 0           only print how well it does

It learns from generated flags and shapes alone (`recap.worlds`): mean squared error and a small KL divergence. The last
line printed is the peak signal-to-noise ratio of real flags that no training has seen ("heldout" in flags_truth.csv).
OUT also gets reconstructions.png: held-out flags, above what is left of them.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from hpc.base.errors import Parser
from recap.demo import FLAGS, FLAGS_TRUTH
from recap.dit.images import centre_crop, cropped
from recap.dit.vae import Vae
from recap.randomness import draw
from recap.worlds import flags, shapes

SIDE = 64
STAGES = [(0.6, 16, 16), (0.85, 32, 8), (1.0, 64, 4)]
"""(share of the steps that a stage ends at, side in pixels of the crops, crops a step): small crops come first, since
most is learned from them, quickly."""

LEARNING_RATE = 2e-3
KL_WEIGHT = 3e-5
"""Weight of the KL term (a mean over latents) beside the mean squared error over pixels in [-1, 1]."""


def build_model() -> AutoencoderKL:
    """Convolutions only: any side that 4 divides will do. Residual branches start at zero, the posterior narrow."""
    model = AutoencoderKL(
        block_out_channels=[16, 32, 32],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )
    for name, weight in model.named_parameters():
        if name.endswith("conv2.weight"):
            torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(model.quant_conv.bias[4:], -6.0)
    return model


def picture(seed: int, index: int) -> np.ndarray:
    """A generated flag's centre (two of three), or shapes: uint8 [64, 64, 3]."""
    if index % 3:
        return cropped(flags.sample(seed, index)[1], SIDE)
    return np.asarray(shapes.sample(seed, index, side=SIDE).image)


def pictures(seed: int, first: int, count: int, side: int = SIDE) -> torch.Tensor:
    """Pieces of generated pictures, each cut out at a place of its own: float32 [count, 3, side, side] in [-1, 1]."""
    made = []
    for index in range(first, first + count):
        left, top = (draw(seed, index, axis) % (SIDE - side + 1) for axis in ("left", "top"))
        made.append(picture(seed, index)[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) / 127.5 - 1


def train(model: AutoencoderKL, steps: int, seed: int) -> None:
    """Adam, a warm-up of 2 %, then linear to zero."""
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.02 * steps)) * (1 - step / steps)
    )
    noise = torch.Generator().manual_seed(seed)
    seen = 0
    for step in range(steps):
        side, count = next((side, count) for until, side, count in STAGES if step < until * steps)
        x_BCHW = pictures(seed, seen, count, side)
        seen += count
        posterior = model.encode(x_BCHW).latent_dist
        error = (model.decode(posterior.sample(noise)).sample - x_BCHW).square().mean()
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        (error + KL_WEIGHT * divergence).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 0:
            sys.stdout.write(f"step {step}  error {error.item():.5f}  KL {divergence.item():.2f}\n")
            sys.stdout.flush()


@torch.no_grad()
def latent_scale(model: AutoencoderKL, seed: int) -> float:
    """1 / the standard deviation of draws from the posterior, so that latents have unit variance (LDM, section D.1)."""
    posterior = model.encode(pictures(seed, 0, 256)).latent_dist
    return 1 / float(posterior.sample(torch.Generator().manual_seed(seed)).std())


def held_out() -> list[np.ndarray]:
    """The centres of real flags that no training has seen, uint8 [64, 64, 3]."""
    with FLAGS_TRUTH.open() as file:
        keys = {row["iso"] for row in csv.DictReader(file) if row["split"] == "heldout"}
    found = []
    for path in sorted(FLAGS.glob("*.tar")):
        with tarfile.open(path) as tar:
            images = [m for m in tar if m.name.endswith(".png") and m.name.removesuffix(".png") in keys]
            found += [centre_crop(tar.extractfile(m).read(), SIDE) for m in images]  # type: ignore[union-attr]
    return found


def reconstructed(folder: Path, originals: np.ndarray) -> np.ndarray:
    """Through the VAE and back, by the posterior's mean: uint8 [N, 64, 64, 3]."""
    vae = Vae(folder, "cpu", torch.float32)
    return vae.decode(vae.scaled(vae.encode(torch.from_numpy(originals)), None)).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB, of the mean error over all."""
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5600, help="0: evaluate the VAE in OUT")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.steps:
        model = build_model()
        train(model, arguments.steps, arguments.seed)
        model.register_to_config(scaling_factor=round(latent_scale(model, arguments.seed), 5))
        model.half().save_pretrained(arguments.out)
        (arguments.out / "diffusion_pytorch_model.safetensors").chmod(0o644)
    originals = np.stack(held_out())
    made = reconstructed(arguments.out, originals)
    rows = [np.concatenate(list(images[:12]), axis=1) for images in (originals, made)]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "PNG")
    (arguments.out / "reconstructions.png").write_bytes(buffer.getvalue())
    sys.stdout.write(f"{len(originals)} held-out flags: PSNR {psnr(originals, made):.1f} dB\n")


if __name__ == "__main__":
    main()
