"""Models and tokenizers of others, and ours elsewhere: the same image and the same text give the same features."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ConvNextImageProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

from hpc.base.errors import UserError
from recap.clip import preprocessing, weights
from recap.clip.encoder import Encoder
from recap.clip.hf import clip_config
from recap.clip.objective import Objective
from recap.clip.settings import OPENAI, ClipConfig, LossConfig
from recap.clip.tokenizer_files import check_tokenizer
from recap.clip.tokens import Tokens
from recap.evaluate.clip_score import open_clip
from tests.clip.models import WORDS, tiny

TEXTS = ["a red flag", "the blue car", "a star of the cross"]


def picture(width: int = 120, height: int = 40) -> Image.Image:
    """A gradient with a square, so that a squash, a crop and their filters all differ."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((220, 30, 30), (width // 8, 4, width // 4, height - 4))
    return image


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@torch.no_grad()
def theirs(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features by transformers alone."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")  # torchvision's pixels differ
    given = processor(text=TEXTS, images=[picture(), picture(40, 90)], return_tensors="pt", padding=True)
    out = model(**given)
    return out.image_embeds, out.text_embeds


def ours(folder: Path, opens: Any = Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = opens(folder)
    pictures = [lambda: encoded(picture()), lambda: encoded(picture(40, 90))]
    return encoder.images(pictures, ["one", "two"]), encoder.texts(TEXTS)[0]


@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"shortest_edge": 32}, "crop_size": 32, "resample": 3},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 2, "image_mean": [0.5] * 3},
        {"size": {"shortest_edge": 41}, "crop_size": 32, "resample": 1, "image_std": [0.2, 0.3, 0.4]},
        None,
    ],
    ids=["crop", "squash", "larger", "no processor"],
)
def test_a_foreign_clip_sees_what_its_processor_makes(tmp_path: Path, processor: dict[str, Any] | None) -> None:
    config = tiny(tmp_path, "hf")
    tokens = Tokens(config)
    torch.manual_seed(0)
    CLIPModel(clip_config(config, 32, tokens.eos)).save_pretrained(tmp_path)
    tokens.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(**(processor or {"size": {"shortest_edge": 32}, "crop_size": 32})).save_pretrained(tmp_path)
    wanted = theirs(tmp_path)
    if processor is None:
        (tmp_path / "preprocessor_config.json").unlink()
    for opens in (Encoder, *([lambda folder: open_clip(folder).encoder] if processor else [])):
        for mine, named in zip(ours(tmp_path, opens), wanted, strict=True):
            torch.testing.assert_close(mine, named, rtol=1e-5, atol=1e-5)


SIZES = [(120, 40), (40, 90), (37, 55), (32, 35), (33, 32), (5, 9), (700, 20)]


def normalised(made: preprocessing.Preprocessing, data: bytes) -> torch.Tensor:
    """float32 [3, H, W], as a module of ours takes it."""
    objective = Objective(torch.nn.Identity(), LossConfig(), made.mean, made.std)
    return objective.pixels(torch.tensor(made.pixels(data))[None])[0]


@pytest.mark.parametrize("filter_", list(Image.Resampling))
@pytest.mark.parametrize(
    "processor",
    [
        {"size": {"shortest_edge": 24}, "crop_size": 32, "rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 45}, "crop_size": 32, "rescale_factor": 0.01, "image_std": 0.5, "image_mean": 0.1},
        {"size": {"height": 37, "width": 50}, "crop_size": 32, "do_normalize": False},
        {"do_resize": False, "crop_size": 32, "do_rescale": False, "image_mean": [99.0] * 3, "image_std": [50.0] * 3},
        {"size": {"shortest_edge": 32}, "crop_size": 32, "do_pad": True},
    ],
    ids=["smaller", "larger", "both sides", "as it is", "nothing to pad"],
)
def test_pixels_of_any_plain_processor(tmp_path: Path, processor: dict[str, Any], filter_: int) -> None:
    CLIPImageProcessor(**processor, resample=int(filter_)).save_pretrained(tmp_path)
    made = preprocessing.of_transformers(tmp_path, 32)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for size in SIZES:
        wanted = theirs(picture(*size), return_tensors="pt")["pixel_values"][0]
        off = 0.0 if max(size) < 16 * min(size) else 2 / 255 / min(made.std)  # very long ones: see recap.engine.decode
        torch.testing.assert_close(normalised(made, encoded(picture(*size))), wanted, rtol=1e-5, atol=1e-5 + off)


@pytest.mark.parametrize(
    ("processor", "why"),
    [
        (CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=40), "the vision tower takes 32"),
        (CLIPImageProcessor(size={"height": 40, "width": 40}, do_center_crop=False), "the vision tower takes 32"),
        (CLIPImageProcessor(crop_size={"height": 32, "width": 30}), "the vision tower takes 32"),
        (CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False), "makes no squares"),
        (CLIPImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, crop_size=32), "only shortest_edge"),
        (ConvNextImageProcessor(size={"shortest_edge": 32}), "and nothing else"),
    ],
)
def test_a_processor_whose_pixels_are_not_made_here_is_refused(tmp_path: Path, processor: Any, why: str) -> None:
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=why):
        preprocessing.of_transformers(tmp_path, 32)


def test_our_export_gives_the_same_in_transformers(tmp_path: Path) -> None:
    """By CLIPProcessor and in the pipeline for zero-shot classification, though the tokenizer puts no BOS or EOS."""
    config = tiny(tmp_path, "hf")
    (tmp_path / "bare").mkdir()
    bare = Tokenizer.from_file(f"{config.tokenizer}/tokenizer.json")
    made = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]", bos_token="<bos>", eos_token="<eos>")
    made.backend_tokenizer.post_processor = None
    made.save_pretrained(tmp_path / "bare")
    config.tokenizer = str(tmp_path / "bare")
    tokens = Tokens(config)
    torch.manual_seed(0)
    weights.save(weights.build(config, 32, tokens.eos), config, tokens, 32, tmp_path / "out")
    mine, named = ours(tmp_path / "out"), theirs(tmp_path / "out")
    for a, b in zip(mine, named, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    zero_shot = pipeline("zero-shot-image-classification", model=str(tmp_path / "out"))
    zero_shot.image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    scores = {f["label"]: f["score"] for f in zero_shot(picture(), candidate_labels=TEXTS, hypothesis_template="{}")}
    wanted = (CLIPModel.from_pretrained(tmp_path / "out").logit_scale.exp() * mine[0][0] @ mine[1].T).softmax(-1)
    assert [scores[text] for text in TEXTS] == pytest.approx(wanted.tolist(), rel=1e-4)


def open_clips(image: Image.Image, given: dict[str, Any]) -> torch.Tensor:
    """As open_clip's `image_transform` has it for evaluation, by torchvision."""
    from torchvision.transforms import InterpolationMode  # seconds that only this function's tests need
    from torchvision.transforms import functional as vision

    filter_ = InterpolationMode.BILINEAR if given.get("interpolation") == "bilinear" else InterpolationMode.BICUBIC
    mode = given.get("resize_mode", "shortest")
    if mode == "squash":
        made = vision.resize(image, [32, 32], filter_)
    elif mode == "shortest":
        made = vision.center_crop(vision.resize(image, [32], filter_), [32, 32])
    else:
        sides = [round(side / (max(image.size) / 32)) for side in image.size]
        small = vision.resize(image, sides[::-1], filter_)
        left, top = ((32 - side) // 2 for side in sides)
        room = [left, top, 32 - sides[0] - left, 32 - sides[1] - top]
        made = vision.pad(small, room, fill=given.get("fill_color", 0))
    mean, std = (given.get(name, OPENAI[i]) for i, name in enumerate(("mean", "std")))
    return vision.normalize(
        vision.to_tensor(made), *([v] * 3 if isinstance(v, float) else list(v) for v in (mean, std))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "given",
    [
        {"interpolation": "bilinear", "resize_mode": "squash", "mean": [0.1] * 3, "std": [0.3, 0.4, 0.5]},
        {"interpolation": "random"},
        {"resize_mode": "longest", "interpolation": "bicubic", "fill_color": 90},
        {"resize_mode": "shortest", "interpolation": "bilinear", "size": 224, "mean": 0.5, "std": 0.25},
    ],
)
def test_open_clips_pixels(given: dict[str, Any], size: tuple[int, int]) -> None:
    mine = normalised(preprocessing.of_open_clip(given, 32), encoded(picture(*size)))
    torch.testing.assert_close(mine, open_clips(picture(*size), given), rtol=1e-5, atol=0.02 if 700 in size else 1e-5)


def test_settings_that_open_clip_does_not_have() -> None:
    with pytest.raises(UserError, match="resize_mode 'tile'"):
        preprocessing.of_open_clip({"resize_mode": "tile"}, 32)


# --- end tokens -----------------------------------------------------------------------------------


def words(folder: Path, special: list[str], **named: str) -> str:
    vocabulary = {word: i for i, word in enumerate(special + WORDS.split())}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", **named).save_pretrained(
        folder
    )
    return str(folder)


LLAMAS = ["<pad>", "<s>", "</s>", "<unk>"]


def test_an_end_token_of_id_2_is_refused_at_launch(tmp_path: Path) -> None:
    config = tiny(tmp_path, "hf")
    config.tokenizer = words(tmp_path / "llamas", LLAMAS, bos_token="<s>", eos_token="</s>")
    for opens in (lambda: check_tokenizer(ClipConfig(model=config)), lambda: Tokens(config)):
        with pytest.raises(UserError, match=r"end token of .* has the id 2.*recap.clip.make_tokenizer"):
            opens()
    config.tokenizer = words(tmp_path / "other", [*LLAMAS[:2], "<unk>", "</s>"], bos_token="<s>", eos_token="</s>")
    check_tokenizer(ClipConfig(model=config))
    assert Tokens(config).eos == 3


@pytest.mark.parametrize(("architecture", "named", "lacks"), [
    ("hf", {"eos_token": "</s>"}, "BOS"), ("hf", {"bos_token": "<s>"}, "EOS"), ("recap", {"eos_token": "</s>"}, "CLS"),
])  # fmt: skip
def test_tokens_that_are_missing_are_named_at_launch(tmp_path: Path, architecture: str, named: Any, lacks: str) -> None:
    config = tiny(tmp_path, architecture)
    config.tokenizer = words(tmp_path / "words", ["<pad>", "<s>", "<unk>", "</s>"], **named)
    for opens in (lambda: check_tokenizer(ClipConfig(model=config)), lambda: Tokens(config)):
        with pytest.raises(UserError, match=f"has no {lacks} token"):
            opens()


@pytest.mark.parametrize(("named", "right"), [(2, False), (6, True), (9, False)])
def test_foreign_clips_that_pool_elsewhere_are_refused(tmp_path: Path, named: int, right: bool) -> None:
    """2 is transformers' old rule, the highest id; here the end token (6) is not the highest."""
    config = tiny(tmp_path, "hf")
    CLIPModel(clip_config(config, 32, named)).save_pretrained(tmp_path)
    Tokens(config).tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    for opens in (Encoder, open_clip):
        if right:
            opens(tmp_path)
        else:
            with pytest.raises(UserError, match=r"end token|pools texts at"):
                opens(tmp_path)


def test_the_old_rule_is_right_where_the_end_token_is_the_highest(tmp_path: Path) -> None:
    """As in OpenAI's weights."""
    config = tiny(tmp_path, "hf")
    plain = ["<pad>", "<unk>", "<s>", "a", "red", "flag", "the", "blue", "car", "star", "of", "cross", "</s>"]
    vocabulary = {word: i for i, word in enumerate(plain)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(tmp_path / "words")
    config.tokenizer = str(tmp_path / "words")
    tokens = Tokens(config)
    torch.manual_seed(0)
    CLIPModel(clip_config(config, 32, 2)).save_pretrained(tmp_path / "old")
    tokens.for_transformers().save_pretrained(tmp_path / "old")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "old")
    assert json.loads((tmp_path / "old/config.json").read_text())["text_config"]["eos_token_id"] == 2
    for mine, named in zip(ours(tmp_path / "old"), theirs(tmp_path / "old"), strict=True):
        torch.testing.assert_close(mine, named, rtol=1e-5, atol=1e-5)
    one, other = ours(tmp_path / "old")[1][:2]
    assert F.cosine_similarity(one, other, dim=0) < 0.999
