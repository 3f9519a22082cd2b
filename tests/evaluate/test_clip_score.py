"""CLIP scores equal the models' own, prompts that were cut are counted."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hpc.base.errors import UserError
from recap.clip import weights
from recap.clip.tokens import Tokens
from recap.evaluate.clip_score import ClipScores, open_clip
from recap.evaluate.image_sets import ImageItem
from recap.evaluate.intervals import bootstrap_mean
from tests.evaluate.conftest import World, items


def scored(folder: Path, made: list[ImageItem], batch: int) -> ClipScores:
    clip = open_clip(folder)
    found = ClipScores(clip)
    for start in range(0, len(made), batch):
        part = made[start : start + batch]
        images = clip.encoder.images([partial(attrgetter("data"), i) for i in part], [i.name for i in part])
        found.add(images, [str(i.prompt) for i in part])
    return found


def by_transformers(folder: Path, made: list[ImageItem]) -> list[float]:
    model = CLIPModel.from_pretrained(folder).eval()
    pictures = [Image.open(io.BytesIO(item.data)) for item in made]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer([i.prompt for i in made], padding=True, truncation=True, max_length=10, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **pixels)
    return (100 * (found.image_embeds * found.text_embeds).sum(-1)).tolist()


def by_hand(folder: Path, made: list[ImageItem]) -> list[float]:
    model, config, side = weights.opened(folder)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in config.normalisation)
    images = [Image.open(io.BytesIO(i.data)).resize((side, side), Image.Resampling.BILINEAR) for i in made]
    pixels = torch.stack([(torch.tensor(np.array(i)).permute(2, 0, 1) / 255 - mean) / std for i in images])
    ids = Tokens(config).encode([str(i.prompt) for i in made])[0]
    with torch.no_grad():
        image, text = model.encode_image(pixels)[0], model.encode_text(torch.from_numpy(ids))
    return (100 * F.cosine_similarity(image, text)).tolist()


@pytest.mark.parametrize("which, by", [("theirs", by_transformers), ("ours", by_hand)])
def test_the_score_is_the_models_own(world: World, which: str, by) -> None:
    made = items(24, noise=20)
    cosines = by(world.folder / which, made)
    found = scored(world.folder / which, made, 7)
    assert found.scores == pytest.approx([max(c, 0.0) for c in cosines], abs=1e-3)
    assert found.mean.value == pytest.approx(sum(found.scores) / 24) and np.std(found.scores) > 0.1
    assert found.cut_share == (1.0 if which == "theirs" else 0.0)  # 10 words and two special tokens; 10 and 64 read


def test_a_negative_cosine_counts_as_zero(world: World) -> None:
    found = ClipScores(open_clip(world.ours))
    texts, _ = found.clip.encoder.texts(["a red star", "a blue cross"])
    found.add(torch.stack([-texts[0], texts[1]]), ["a red star", "a blue cross"])
    assert found.scores == pytest.approx([0, 100], abs=1e-4) and found.mean.value == pytest.approx(50, abs=1e-4)


def test_bootstrap_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        found = bootstrap_mean(rng.exponential(2.0, 80).tolist(), seed)
        hits += found.low <= 2.0 <= found.high
    assert 85 <= hits <= 99


def test_open_clips_files_open_and_others_are_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no CLIP"):
        open_clip(tmp_path)
    plain = shutil.copytree(world.ours, tmp_path / "plain")  # as the paper's weights are released: open_clip's files
    (plain / "recap_clip.json").unlink()
    assert scored(plain, items(5), 5).scores == scored(world.ours, items(5), 5).scores
    config = json.loads((plain / "open_clip_config.json").read_text())
    del config["model_cfg"]["vision_cfg"]["no_ln_pre"]
    (plain / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another architecture than Recap-CLIP's"):
        open_clip(plain)
    bare = shutil.copytree(world.theirs, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be opened"):
        open_clip(bare)
    with pytest.raises(UserError, match=r"image 0: image: not an image"):
        open_clip(world.theirs).encoder.images([lambda: b"junk"], ["image 0"])
