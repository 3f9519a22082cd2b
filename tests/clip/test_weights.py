"""Models open elsewhere with equal features, and weights of other libraries open here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hpc.base.errors import UserError
from recap.clip import weights
from recap.clip.hf import clip_config
from recap.clip.settings import VISION, ClipModelConfig
from recap.clip.tokens import Tokens
from recap.clip.towers import RecapClip, resample_positions, sincos_2d
from recap.clip.weights import build, opened, save
from tests.clip.models import tiny

TEXTS = ["a red flag with a star", "the  blue car", "a " * 40, ""]


def made(folder: Path, architecture: str, **changes: Any) -> tuple[Any, ClipModelConfig, Tokens]:
    torch.manual_seed(0)
    config = tiny(folder, architecture, **changes)
    tokens = Tokens(config)
    model = build(config, 32, tokens.eos).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02 * p.requires_grad)  # so that no bias is zero
    save(model, config, tokens, 32, folder / architecture)
    return model, config, tokens


def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, 32, 32)


@pytest.fixture(scope="module")
def open_clip() -> Any:
    from tests.clip.parity import open_clip

    return open_clip()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["recap", "hf"])
def test_open_clip_opens_what_we_write(tmp_path, architecture, open_clip) -> None:
    model, config, tokens = made(tmp_path, architecture)
    name = f"local-dir:{tmp_path / architecture}"
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    theirs.eval()
    ids = open_clip.get_tokenizer(name)(TEXTS)
    assert torch.equal(ids, torch.from_numpy(tokens.encode(TEXTS)[0]))
    torch.testing.assert_close(theirs.encode_text(ids), model.encode_text(ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theirs.encode_image(pixels()), model.encode_image(pixels())[0], rtol=1e-6, atol=1e-6)
    assert theirs.logit_scale.item() == model.logit_scale.item()
    assert tuple(preprocess.transforms[-1].mean) == config.normalisation[0]


@torch.no_grad()
def test_transformers_opens_what_we_write(tmp_path) -> None:
    model, _, tokens = made(tmp_path, "hf")
    theirs = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    ids = torch.from_numpy(tokens.encode(TEXTS)[0])
    out = theirs(input_ids=ids, pixel_values=pixels())
    for ours, named in ((model.encode_text(ids), out.text_embeds), (model.encode_image(pixels())[0], out.image_embeds)):
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=-1), named, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["recap", "hf"])
def test_what_we_write_we_open_and_fine_tune_at_another_resolution(tmp_path, architecture) -> None:
    model, config, tokens = made(tmp_path, architecture)
    again, found, image = opened(tmp_path / architecture)
    assert image == 32 and found.architecture == architecture
    assert torch.equal(again.encode_image(pixels())[0], model.encode_image(pixels())[0])
    config.start = str(tmp_path / architecture)
    larger = build(config, 64, tokens.eos)
    assert larger.encode_image(torch.randn(1, 3, 64, 64))[0].shape == (1, 24)


@torch.no_grad()
def test_open_clip_and_openai_weights_open_here(tmp_path, open_clip) -> None:
    """Their `CLIP` (as OpenAI named it) in `hf`; their `CustomTextCLIP` in `recap`."""
    config = tiny(tmp_path, "hf", activation="quick_gelu")
    tokens = Tokens(config)
    description = weights.open_clip_model(config, tokens, 32)
    description["text_cfg"].pop("hf_tokenizer_name")
    theirs = open_clip.model.CLIP(**description).eval()
    save_file(theirs.state_dict(), tmp_path / weights.OPEN_CLIP_WEIGHTS)
    config.start = str(tmp_path)
    ours = build(config, 32, tokens.eos).eval()
    ids = torch.from_numpy(tokens.encode(TEXTS)[0])
    torch.testing.assert_close(theirs.encode_text(ids), ours.encode_text(ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theirs.encode_image(pixels()), ours.encode_image(pixels())[0], rtol=1e-6, atol=1e-6)

    config = tiny(tmp_path, "recap", start=str(tmp_path))
    description = weights.open_clip_model(config, Tokens(config), 32)
    description["text_cfg"].pop("hf_tokenizer_name")
    description["text_cfg"].pop("tokenizer_kwargs")
    description.pop("custom_text")
    theirs = open_clip.model.CustomTextCLIP(**description).eval()
    save_file(theirs.state_dict(), tmp_path / weights.OPEN_CLIP_WEIGHTS)
    ours = build(config, 32, 0).eval()
    torch.testing.assert_close(theirs.encode_image(pixels()), ours.encode_image(pixels())[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_positions_of_others_are_kept(tmp_path) -> None:
    """The released weights' sin-cos positions have other frequencies than ours: their features need theirs."""
    made(tmp_path, "recap")
    file = tmp_path / "recap" / weights.OPEN_CLIP_WEIGHTS
    tensors = load_file(file)
    theirs = tensors["visual.positional_embedding"].roll(1, 0) * 0.5
    save_file({**tensors, "visual.positional_embedding": theirs}, file)
    model: Any
    model, config, _ = opened(tmp_path / "recap")
    assert torch.equal(model.visual.positional_embedding, theirs)
    larger: Any = build(config, 64, 0)
    assert torch.equal(larger.visual.positional_embedding, resample_positions(theirs, 8))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_clip_of_transformers_opens_here(tmp_path, activation) -> None:
    """As OpenAI's weights are published: no file of ours beside them."""
    config = tiny(tmp_path, "hf", activation=activation)
    tokens = Tokens(config)
    theirs = CLIPModel(clip_config(config, 32, tokens.eos)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokens.tokenizer.save_pretrained(tmp_path / "theirs")
    ours, found, image = opened(tmp_path / "theirs")
    assert (found.activation, found.context, image) == (activation, 12, 32)
    ids = torch.from_numpy(Tokens(found).encode(TEXTS)[0])
    out = theirs(input_ids=ids, pixel_values=pixels())
    for mine, named in ((ours.encode_text(ids), out.text_embeds), (ours.encode_image(pixels())[0], out.image_embeds)):
        torch.testing.assert_close(torch.nn.functional.normalize(mine, dim=-1), named, rtol=1e-6, atol=1e-6)


def test_names_go_there_and_back(tmp_path) -> None:
    made(tmp_path, "hf")
    there = load_file(tmp_path / "hf" / "model.safetensors")
    back = weights.from_open_clip(weights.to_open_clip(there))
    assert back.keys() == there.keys() and all(torch.equal(back[n], there[n]) for n in there)
    old = {**weights.to_open_clip(there), "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(40)}
    save_file(old, tmp_path / "openai.safetensors")  # what OpenAI's archives hold besides weights
    built: Any = build(tiny(tmp_path, "hf", start=str(tmp_path / "openai.safetensors")), 32, 6)
    assert torch.equal(built.model.visual_projection.weight, there["visual_projection.weight"])


def test_the_released_layout() -> None:
    """Names and shapes of UCSC-VLAA/ViT-L-16-HTxt-Recap-CLIP, on a model of its shape."""
    with torch.device("meta"):
        model = RecapClip(ClipModelConfig(vision="L", text="huge"), 32)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["visual.conv1.weight"] == (1024, 3, 16, 16)
    assert shapes["visual.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"] == (4096, 1024)
    assert shapes["visual.proj"] == (1024, 768)
    assert shapes["text.token_embedding.weight"] == (32000, 1024)
    assert shapes["text.positional_embedding"] == (128, 1024)
    assert shapes["text.transformer.resblocks.23.ln_2.bias"] == (1024,)
    assert shapes["text.text_projection"] == (1024, 768)
    assert shapes["visual.ln_post.weight"] == (1024,) and shapes["text.ln_final.weight"] == (1024,)
    assert shapes["logit_scale"] == (1,)  # () in files


@pytest.mark.parametrize(
    ("vision", "text", "millions"),
    [
        ("S/16", "small", (22, 33)),
        ("B/16", "base", (86, 53)),
        ("L/16", "large", (303, 109)),
        ("H/14", "huge", (631, 334)),
    ],
)
def test_sizes_are_the_papers(vision: str, text: str, millions: tuple[int, int]) -> None:
    size, patch = vision.split("/")
    with torch.device("meta"):
        model = RecapClip(ClipModelConfig(vision=size, text=text, patch=int(patch)), 2 * int(patch))
    counted = [sum(p.numel() for p in tower.parameters()) / 1e6 for tower in (model.visual, model.text)]
    assert counted == pytest.approx(millions, abs=2.5)
    assert set(VISION) == {"S", "B", "L", "H"}


def test_positions_are_resampled_smoothly() -> None:
    grid = sincos_2d(16, 7)
    assert resample_positions(grid, 7) is grid
    larger = resample_positions(grid, 14)
    assert larger.shape == (197, 16) and torch.equal(larger[0], grid[0])
    there_and_back = resample_positions(larger, 7)
    assert (there_and_back - grid).abs().mean() < 0.05


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    made(tmp_path, "recap")
    with pytest.raises(UserError, match=r"is \(40, 48\) there, \(50, 48\) here. Set model.vision"):
        build(tiny(tmp_path, start=str(tmp_path / "recap"), vocabulary=50), 32, 0)
    with pytest.raises(UserError, match=r"not of model.architecture=hf or of other depth"):
        build(tiny(tmp_path, "hf", start=str(tmp_path / "recap")), 32, 0)
    with pytest.raises(UserError, match=r"holds neither open_clip_model.safetensors nor model.safetensors"):
        build(tiny(tmp_path, start=str(tmp_path / "nowhere")), 32, 0)
    (tmp_path / "open_clip_pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"open_clip_pytorch_model.bin is a pickle.*save it as safetensors"):
        build(tiny(tmp_path, start=str(tmp_path)), 32, 0)
    with pytest.raises(UserError, match=r"no recap_clip.json"):
        opened(tmp_path)


@pytest.mark.parametrize("architecture", ["recap", "hf"])
def test_a_start_that_does_not_fit_is_refused_at_launch(tmp_path, architecture) -> None:
    """With the words that the rank would say, from names and shapes alone; what fits passes, at any resolution."""
    made(tmp_path, architecture)
    start = tmp_path / architecture
    bytes_ = (start / weights.OPEN_CLIP_WEIGHTS).read_bytes()
    with open(start / weights.OPEN_CLIP_WEIGHTS, "r+b") as file:  # the weights themselves are not looked at
        file.seek(len(bytes_) // 2)
        file.write(b"\xff" * (len(bytes_) // 2))
    for image in (16, 32, 64):
        weights.check_start(tiny(tmp_path, architecture, start=str(start)), image)
    if architecture == "hf":
        weights.check_start(tiny(tmp_path, "hf", start=str(start / "model.safetensors")), 48)
    other = {"recap": "hf", "hf": "recap"}[architecture]
    for changes, said in (
        ({"vocabulary": 51}, r"here. Set model.vision, model.text, model.context and model.vocabulary"),
        ({"context": 77}, r"\(77, 48\)|\(77, \d+\) here"),
        ({"vision": "64x3x4"}, r"of other depth: .*resblocks|of other depth: .*layers"),
        ({"patch": 4}, r"16, 16\) there|4, 4\) here"),
    ):
        config = tiny(tmp_path, architecture, start=str(start), **changes)
        with pytest.raises(UserError, match=said) as at_launch:
            weights.check_start(config, 32)
        (start / weights.OPEN_CLIP_WEIGHTS).write_bytes(bytes_)
        with pytest.raises(UserError) as in_the_rank:
            build(config, 32, 1)
        assert str(at_launch.value) == str(in_the_rank.value)
    with pytest.raises(UserError, match=f"not of model.architecture={other}"):
        weights.check_start(tiny(tmp_path, other, start=str(start)), 32)
    (start / weights.OPEN_CLIP_WEIGHTS).write_bytes(bytes_[:100])
    with pytest.raises(UserError, match="cannot be read"):
        weights.check_start(tiny(tmp_path, architecture, start=str(start)), 32)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"model.vocabulary.*has 27 tokens, the text tower 20 rows. Write at least 27"):
        Tokens(tiny(tmp_path, vocabulary=20))
    with pytest.raises(UserError, match="has no BOS token"):
        Tokens(ClipModelConfig(architecture="hf", tokenizer=tiny(tmp_path).tokenizer))
    with pytest.raises(UserError, match="write the folder of a tokenizer"):
        Tokens(ClipModelConfig(tokenizer=str(tmp_path / "none")))


def test_token_rows(tmp_path) -> None:
    recap, hf = Tokens(tiny(tmp_path)), Tokens(tiny(tmp_path, "hf"))
    word = recap.tokenizer.convert_tokens_to_ids
    rows, cut = recap.encode(TEXTS, context=8)
    assert cut == 1  # "a red flag with a star" just fits
    assert rows[1].tolist() == [2, word("the"), word("blue"), word("car"), 0, 0, 0, 0]
    assert rows[2].tolist() == [2] + [word("a")] * 6 + [0]
    rows, _ = hf.encode(TEXTS, context=8)
    assert rows[1].tolist() == [5, word("the"), word("blue"), word("car"), 6, 0, 0, 0]
    assert rows[2].tolist() == [5] + [word("a")] * 6 + [6]
    with pytest.raises(UserError, match=r"no token '\[NEW\]'"):
        recap.shape([[8]], ["[NEW]"])
    assert recap.shape([[8]], ["[ALT]"])[0].tolist()[:4] == [2, 4, 8, 0]
    assert json.loads((Path(recap.config.tokenizer) / "tokenizer.json").read_text())
