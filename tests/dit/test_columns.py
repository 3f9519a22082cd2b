"""Columns that a DiT is trained from: latents and text embeddings, made by map jobs; the preprocessing they share."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap.data.block_items import IndexedDataConfig
from recap.data.column import ColumnConfig
from recap.data.images import BadImage
from recap.data.inputs import DataConfig
from recap.data.rows import RowsConfig
from recap.demo import FLAGS, VAE
from recap.dit.encoder_files import text_encoder_digest
from recap.dit.images import centre_crop, flipped
from recap.dit.latents import LatentsConfig, LatentsOperator, read_latent
from recap.dit.storage import total_size_in_words
from recap.dit.text_embeddings import TextEmbeddingsConfig, TextEmbeddingsOperator, read_states
from recap.dit.text_encoder import TextEncoder
from recap.dit.vae import Pixels, Vae, vae_digest, vae_facts
from recap.worlds.tars import write_tar
from tests.dit.conftest import items, rows_of

torch.set_num_threads(1)


def picture(width: int, height: int, form: str = "JPEG", mode: str = "RGB") -> bytes:
    noise = random.Random(width * height).randbytes(8 * 6 * 3)
    image = Image.frombytes("RGB", (8, 6), noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def adm(data: bytes, side: int) -> np.ndarray:
    """DiT's `center_crop_arr`, as it stands in train.py of facebookresearch/DiT."""
    pil_image = Image.open(io.BytesIO(data)).convert("RGB")
    while min(*pil_image.size) >= 2 * side:
        pil_image = pil_image.resize([x // 2 for x in pil_image.size], resample=Image.Resampling.BOX)
    scale = side / min(*pil_image.size)
    pil_image = pil_image.resize([round(x * scale) for x in pil_image.size], resample=Image.Resampling.BICUBIC)
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - side) // 2
    crop_x = (arr.shape[1] - side) // 2
    return arr[crop_y : crop_y + side, crop_x : crop_x + side]


@pytest.mark.parametrize("size", [(300, 201), (50, 80), (64, 64), (515, 256), (129, 700)])
def test_centre_crop_is_that_of_dit(size: tuple[int, int]) -> None:
    for form, mode in (("JPEG", "RGB"), ("PNG", "L")):
        data = picture(*size, form, mode)
        assert np.array_equal(centre_crop(data, 64), adm(data, 64))


def test_what_cannot_be_cropped_is_said() -> None:
    strip = picture(60_000, 1, "PNG")  # would be 64 x 3,840,000 pixels
    for data, phrase in [(b"junk", "not an image"), (picture(300, 200)[:-900], "truncated"), (strip, "too narrow")]:
        with pytest.raises(BadImage, match=phrase):
            centre_crop(data, 64)


def test_half_of_the_images_are_mirrored() -> None:
    drawn = [flipped(0, 1, f"00000/{i}") for i in range(1000)]
    assert 440 < sum(drawn) < 560 and drawn == [flipped(0, 1, f"00000/{i}") for i in range(1000)]
    assert drawn != [flipped(0, 2, f"00000/{i}") for i in range(1000)]


# --- one interface --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae() -> Vae:
    return Vae(VAE, "cpu", torch.float32)


@pytest.fixture(scope="module")
def flags() -> torch.Tensor:
    """uint8 [19, 64, 64, 3]: two micro-batches and a rest."""
    crops = [
        i.payload.image for i in items(LatentsOperator(LatentsConfig(data=IndexedDataConfig(shards=[str(FLAGS)]))))[:19]
    ]
    return torch.from_numpy(np.stack([centre_crop(data, 64) for data in crops]))


def test_a_latent_does_not_depend_on_its_batch(vae: Vae, flags: torch.Tensor) -> None:
    moments = vae.encode(flags)
    assert moments.shape == (19, 8, 16, 16) and moments.dtype == torch.float32
    latents = vae.scaled(moments, None)
    pixels = vae.decode(latents)
    for at in (0, 5, 8, 18):
        assert torch.equal(moments[at : at + 1], vae.encode(flags[at : at + 1]))
        assert torch.equal(pixels[at : at + 1], vae.decode(latents[at : at + 1]))


def test_latents_are_those_of_diffusers(vae: Vae, flags: torch.Tensor) -> None:
    import diffusers  # here and not above: every test process collects this file
    from diffusers.image_processor import VaeImageProcessor

    reference: Any = diffusers.AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.float32)
    noise = torch.randn(19, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        posterior = reference.encode(flags.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
        wanted = posterior.sample(torch.Generator().manual_seed(3)) * reference.config.scaling_factor
        images = reference.decode(wanted / reference.config.scaling_factor).sample
    latents = vae.scaled(vae.encode(flags), noise)
    torch.testing.assert_close(latents, wanted, atol=1e-4, rtol=1e-4)
    drawn = np.round(VaeImageProcessor().postprocess(images, "np") * 255)
    assert np.abs(vae.decode(latents).numpy() - drawn).max() <= 1
    assert 0.8 < latents.std() < 1.25


def test_the_shipped_vae_keeps_flags(vae: Vae, flags: torch.Tensor) -> None:
    from recap.demo.train_vae import psnr

    assert psnr(vae.decode(vae.scaled(vae.encode(flags), None)).numpy(), flags.numpy()) > 23


def test_shifts_a_channel_and_vaes_without_posterior(tmp_path: Path, flags: torch.Tensor) -> None:
    import diffusers

    small = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    diffusers.AutoencoderTiny(**small, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    mean, std = [0.5, 0.0, -0.5, 1.0], [1.0, 2.0, 4.0, 8.0]
    (tmp_path / "config.json").write_text(
        json.dumps(settings | {"latents_mean": mean, "latents_std": std, "scaling_factor": 2.0})
    )
    tiny = Vae(tmp_path, "cpu", torch.float32)
    means = tiny.encode(flags[:3])
    assert means.shape == (3, 4, 32, 32) and (tiny.factor, tiny.posterior) == (2, False)
    latents = tiny.scaled(means, torch.randn(means.shape))  # no posterior: no noise
    torch.testing.assert_close(
        latents, 2 * (means - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    )
    with pytest.raises(UserError, match="no posterior"):
        LatentsOperator(LatentsConfig(vae=str(tmp_path), side=64, kind="moments")).identity()


def test_pixel_space_is_exact(flags: torch.Tensor) -> None:
    pixels = Pixels()
    latents = pixels.scaled(pixels.encode(flags), None)
    assert latents.shape == (19, 3, 64, 64) and latents.min() >= -1 and latents.max() <= 1
    assert torch.equal(pixels.decode(latents), flags)


# --- latents as a column --------------------------------------------------------------------


def launch(config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpc.launch", str(config), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def changed(folder: Path, factor: float) -> Path:
    """The shipped VAE with other weights."""
    shutil.copytree(VAE, folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["quant_conv.weight"] = (weights["quant_conv.weight"].float() * factor).half()
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_column_of_latents(tmp_path: Path, vae: Vae) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(FLAGS / "00000.tar", tars)
    images = {"a": picture(90, 70), "b": b"junk", "c": picture(64, 200)}
    with (tars / "00001.tar").open("wb") as file:
        write_tar(file, [(key, {"jpg": data}) for key, data in images.items()])
    config = yaml.safe_load((Path(__file__).parents[2] / "configs/data/latents.yaml").read_text())
    config |= {"data": {"shards": [str(tars)]}, "runs": str(tmp_path), "vae": str(VAE), "map": {"lease_s": 5}}
    path = tmp_path / "latents.yaml"
    path.write_text(yaml.safe_dump(config))
    done = launch(path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = Published(tmp_path / "latents")
    rows = pq.read_table(second.file).to_pylist()
    assert [(r["key"], r["status"], r["reason"]) for r in rows] == [
        ("a", "ok", ""),
        ("b", "skipped", "image: not an image"),
        ("c", "ok", ""),
    ]
    assert {r["status"] for r in pq.read_table(first.file).to_pylist()} == {"ok"}
    for row in (rows[0], rows[2]):
        latent, about = read_latent(row["latent"])
        assert about == {"vae": vae_digest(VAE), "kind": "moments", "precision": "fp32"}
        pixels = torch.from_numpy(centre_crop(images[row["key"]], 64))
        live = vae.encode(torch.stack([pixels, pixels.flip(1)])).numpy()
        assert latent.dtype == np.float16 and latent.shape == (2, 8, 16, 16)
        np.testing.assert_allclose(latent, live, atol=2e-3, rtol=2e-3)
    stamp = first.file.stat().st_mtime_ns
    assert launch(path).returncode == 0 and first.file.stat().st_mtime_ns == stamp  # nothing is done again
    refused = launch(path, f"vae={changed(tmp_path / 'other', 1.5)}")
    assert refused.returncode == 64 and "--supersede" in refused.stdout + refused.stderr


def job(**changes: Any) -> LatentsOperator:
    config = {"data": DataConfig(shards=[str(FLAGS / "00003.tar")]), "vae": str(VAE), "side": 64, **changes}
    return LatentsOperator(LatentsConfig(**config))


def test_means_are_the_first_half_of_moments() -> None:
    moments = {r.key: read_latent(r.values["latent"])[0] for r in rows_of(job(kind="moments"))}
    means = {r.key: read_latent(r.values["latent"])[0] for r in rows_of(job(kind="mean", flip=False))}
    assert len(means) > 20 and moments.keys() == means.keys()
    assert all(np.array_equal(means[key][0], moments[key][0, :4]) for key in means)


def test_what_fp16_cannot_hold_is_no_latent(tmp_path: Path) -> None:
    rows = rows_of(job(vae=str(changed(tmp_path / "large", 1e7))))
    assert {(r.status, r.reason) for r in rows} == {("skipped", "latent: NaN, or too large for fp16")}


# --- text embeddings as a column ------------------------------------------------------------


def texts(world: Path, column: dict[str, str], **changes: Any) -> TextEmbeddingsOperator:
    data = RowsConfig(shards=[str(world / "tars")], columns={"told": ColumnConfig(**column)})
    config = {"data": data, "text": "told", "text_encoder": str(world / "encoder"), "context": 12, **changes}
    return TextEmbeddingsOperator(TextEmbeddingsConfig(**config))


def test_embeddings_are_those_of_the_live_encoder(world: Path) -> None:
    """From rows of parquet files and from members of the tars; trimmed to their own tokens."""
    encoder = TextEncoder(world / "encoder", 12)
    for column in ({"folder": str(world / "recap"), "field": "caption"}, {"member": "txt"}):
        operator = texts(world, column)
        given = items(operator)
        rows = {(r.shard, r.key): r for r in rows_of(operator, given)}
        assert len(rows) == len(given)
        for item in given[::37]:
            row = rows[item.shard, item.key]
            if not item.payload.text:
                assert (row.status, row.reason) == ("skipped", "text: missing")
                continue
            states, about = read_states(row.values["states"])
            live, mask = encoder.encode([item.payload.text])
            assert about.pop("tokenizer"), "which tokens the states are of"
            assert about == {"encoder": text_encoder_digest(world / "encoder"), "precision": "fp32", "context": "12"}
            assert states.dtype == np.float16 and states.shape == (int(mask.sum()), 32)
            np.testing.assert_allclose(states, live[mask].numpy(), atol=2e-3, rtol=2e-3)


def test_what_they_take_on_disks_is_said(world: Path) -> None:
    assert total_size_in_words(77 * 768 * 2, "captions", []) == "118.3 TB for a billion captions"
    counted = [Shard("0", "0.tar", 1, expected=6), Shard("1", "1.tar", 1, expected=4)]
    assert total_size_in_words(8192, "images", counted) == "81.9 kB for these 10 images"
    assert any("2 views of 4 x 16 x 16 in fp16: 4.3 kB an image" in text for _, text in job().describe())
    assert "12 x 32 in fp16: at most 0.8 kB a caption" in texts(world, {"member": "txt"}).describe()[1][1]


# --- wrong configs and values ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": ""}, "`vae`: missing"),
        ({"vae": "/nowhere"}, "/nowhere is not the folder of a VAE"),
        ({"vae": str(VAE.parent / "captioner")}, "is a llava model. Name an image VAE"),
        ({"side": 66}, "`side`: 66 pixels do not divide by 4.* Write 64"),
        ({"kind": "sample"}, "`kind`: 'sample' is unknown. Write mean or moments"),
        ({"precision": "int8"}, "`precision`: 'int8' is unknown"),
    ],
)
def test_wrong_latents(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        job(**changes).identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "said"}, "`text`: 'said' is not among data.columns \\(told\\)"),
        ({"text_encoder": ""}, "`text_encoder`: empty is not the folder"),
        ({"text_encoder": str(VAE / "nowhere")}, "is not the folder of a text encoder"),
        ({"precision": "fp8"}, "`precision`: 'fp8' is unknown"),
        ({"context": 0}, "`context`: 0 tokens"),
    ],
)
def test_wrong_embeddings(world: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        operator = texts(world, {"member": "txt"}, **changes)
        operator.plan()
        operator.identity()


@pytest.mark.parametrize("blob", [b"", picture(20, 20), b"\x08\0\0\0\0\0\0\0not json", b"a caption"])
def test_a_value_that_is_none(blob: bytes) -> None:
    with pytest.raises(UserError, match="no safetensors blob with 'latent' in it"):
        read_latent(blob)


def test_a_config_that_lies(tmp_path: Path) -> None:
    shutil.copytree(VAE, tmp_path / "vae")
    path = tmp_path / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spatial_compression_ratio": 8}))
    assert vae_facts(tmp_path / "vae").factor == 8
    with pytest.raises(UserError, match="makes latents of shape"):
        Vae(tmp_path / "vae", "cpu", torch.float32)
