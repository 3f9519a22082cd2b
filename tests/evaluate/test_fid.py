"""Fréchet distances: torchmetrics' numbers are the formula's, Inception is the one of FID, references keep."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hpc.base.errors import UserError
from recap.evaluate.clip_score import open_clip
from recap.evaluate.fid import (
    ClipFeatures,
    FrechetDistance,
    Statistics,
    open_features,
    reference_statistics,
)
from recap.evaluate.inception import Inception, load_inception
from tests.evaluate.conftest import World, items


def statistics(features: torch.Tensor) -> Statistics:
    features = features.double()
    return Statistics(features.sum(0), features.T @ features, len(features), {})


def distance(real: torch.Tensor, made: torch.Tensor, batch: int = 7) -> float:
    found = FrechetDistance(statistics(real))
    for part in made.split(batch):
        found.add(part)
    return found.value()


def by_hand(real: np.ndarray, made: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with the root of the product as that of a symmetric matrix."""

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(values.clip(0)) @ vectors.T

    a, b = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    cross = np.trace(root(root(a) @ b @ root(a)))
    return float(((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


@pytest.mark.parametrize("count", [200, 6])  # more images than features, and fewer
def test_the_distance_is_the_formulas(count: int) -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
    made = rng.normal(size=(count, 12)) @ rng.normal(size=(12, 12)) + 0.5
    found = [distance(torch.tensor(real), torch.tensor(made), batch) for batch in (1, 64)]
    assert found == pytest.approx([by_hand(real, made)] * 2, rel=1e-4)


def test_zero_for_the_same_images_and_growing_with_noise(world: World) -> None:
    features = ClipFeatures(open_clip(world.ours))
    reference = reference_statistics(features, items(60), 32, "these", 16)
    found = []
    for noise in (0, 10, 40, 120):
        made = FrechetDistance(reference)
        made.add(features(items(60, noise)))
        found.append(made.value())
    assert abs(found[0]) < 1e-6 and found == sorted(found) and found[1] > 1e-4, found
    assert features.name == "FD(ours)" and "not FID" in features.about
    export = shutil.copytree(world.ours, world.folder / "runs/recap-clip/exports/final")
    assert open_clip(export).name == "recap-clip"


def test_a_reference_is_cropped_counted_and_kept(world: World, tmp_path: Path) -> None:
    features = ClipFeatures(open_clip(world.theirs))
    plain = items(12)
    wide = []
    for item in plain:  # as photographs come: the square in the middle of 64 x 128 pixels
        image = Image.open(io.BytesIO(item.data)).resize((64, 64), Image.Resampling.NEAREST)
        canvas = Image.new("RGB", (128, 64), "yellow")
        canvas.paste(image, (32, 0))
        buffer = io.BytesIO()
        canvas.save(buffer, "PNG")
        wide.append(replace(item, data=buffer.getvalue()))
    broken = replace(plain[0], data=plain[0].data[:60])
    found = reference_statistics(features, [*wide, broken], 32, "wide", 5)
    assert (found.count, found.about["unreadable"], found.about["side"]) == (12, "1", "32")
    torch.testing.assert_close(found.total, features(plain).double().sum(0), atol=1e-5, rtol=0)

    found.save(tmp_path / "reference.safetensors")
    kept = Statistics.load(tmp_path / "reference.safetensors", features)
    assert torch.equal(kept.outer, found.outer) and (kept.count, kept.about) == (found.count, found.about)
    with pytest.raises(UserError, match=r"was made with other features \(FD\(theirs\)"):
        Statistics.load(tmp_path / "reference.safetensors", ClipFeatures(open_clip(world.ours)))
    with pytest.raises(UserError, match="at least 2 are needed"):
        reference_statistics(features, [broken], 32, "broken", 5)


def known_weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that NumPy's frozen generator makes, of magnitudes that keep the signal."""
    rng, made = np.random.RandomState(0), {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        value = (rng.random_sample(tuple(tensor.shape)) * 3.4641 - 1.73205).astype("f4")
        if name.endswith("conv.weight"):
            value *= np.float32((2 / np.prod(tensor.shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "bn.weight")):
            value = 1 + 0.1 * np.abs(value)
        else:
            value *= np.float32(0.1)
        made[name] = torch.from_numpy(value)
    return made


def test_inception_is_torch_fidelitys(tmp_path: Path) -> None:
    """Expected: features of torch-fidelity 0.4.0's network with these weights and torchmetrics' resizing."""
    made = known_weights(Inception())
    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # as in the published file
    torch.save(made | fc, tmp_path / "inception.pth")
    features = open_features(f"inception:{tmp_path / 'inception.pth'}", "cpu", open_clip)
    pixels = torch.from_numpy(np.random.RandomState(1).randint(0, 256, (2, 3, 400, 480)).astype("u1"))
    found = features([replace(item, data=png(image)) for item, image in zip(items(2), pixels, strict=True)])
    expected = {
        "mean": (found.mean(1), [1.137022, 1.132928]),
        "first": (found[0, :4], [0.025239, 0.0, 0.560040, 1.525912]),
        "last": (found[1, -4:], [0.693922, 0.802185, 0.0, 0.0]),
    }
    for which, (ours, theirs) in expected.items():
        assert ours.tolist() == pytest.approx(theirs, abs=2e-4), which
    assert features.name == "FID"

    save_file(made, tmp_path / "inception.safetensors")
    same = load_inception(tmp_path / "inception.safetensors").state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in made.items())


def png(pixels: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "which, content, why",
    [
        ("inception:{}/none.pth", b"", "no Inception weights .* Download https://.*pth"),
        ("inception:{}/a.pth", b"junk", "does not hold FID's Inception weights"),
        ("inception:{}/a.safetensors", b"junk", "does not hold FID's Inception weights"),
        ("inception", b"", "write inception:FILE"),
        ("clip:{}", b"", "is no CLIP"),
    ],
)
def test_missing_weights_are_named(tmp_path: Path, which: str, content: bytes, why: str) -> None:
    if content:
        Path(which.format(tmp_path).partition(":")[2]).write_bytes(content)
    with pytest.raises(UserError, match=why):
        open_features(which.format(tmp_path), "cpu", open_clip)
