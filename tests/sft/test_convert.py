"""Checkpoints that others made, converted and assembled for fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from hpc.base.errors import UserError
from recap.sft.assemble import assemble
from recap.sft.convert import convert
from tests.sft.checkpoints import captions, tensors


def _write(weights: dict[str, torch.Tensor], folder: Path) -> None:
    save_file({name: tensor.detach().clone() for name, tensor in weights.items()}, folder / "model.safetensors")


def original_of(captioner: Path, folder: Path, tower: bool) -> dict[str, torch.Tensor]:
    """Write a LLaVA checkpoint with the original's names and config, made from one of ours; its weights. tower: with a
    vision tower of its own, as where that was trained, and the buffers that old transformers saved."""
    from transformers import AutoTokenizer

    ours = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    original = {"lm_head.weight": ours.lm_head.weight}
    for name, tensor in ours.model.state_dict().items():
        name = name.replace("language_model.", "").replace("multi_modal_projector.linear_1", "mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
        if not name.startswith("vision_tower."):
            original["model." + name] = tensor
        elif tower:
            original["model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_tower.")] = tensor
    if tower:
        original["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)
        original["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    folder.mkdir()
    _write(original, folder)
    text = ours.config.text_config.to_dict() | {"model_type": "llava_llama", "image_aspect_ratio": "pad"}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]  # as transformers 4 wrote it
    text |= {"mm_vision_tower": "clip", "mm_vision_select_layer": ours.config.vision_feature_layer}
    text |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
    text |= {"vocab_size": ours.lm_head.weight.shape[0], "architectures": ["LlavaLlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(text))
    AutoTokenizer.from_pretrained(captioner).save_pretrained(folder)
    return original


@pytest.mark.parametrize("way", ["safetensors", "bin", "own tower"])
def test_convert(captioner: Path, clip: Path, tmp_path: Path, way: str) -> None:
    """An original LLaVA checkpoint, made from ours by its own names, becomes a model with equal weights, key by key."""
    from transformers import CLIPVisionModel

    folder = tmp_path / "original"
    original = original_of(captioner, folder, tower=way == "own tower")
    if way == "bin":
        (folder / "model.safetensors").unlink()
        names = sorted(original)
        for number, part in enumerate((names[::2], names[1::2]), 1):
            parts = {name: original[name].detach() for name in part}
            torch.save(parts, folder / f"pytorch_model-{number:05d}-of-00002.bin")
    elif way == "own tower":  # it counts, not CLIP's
        moved = CLIPVisionModel.from_pretrained(clip)
        torch.nn.init.zeros_(moved.state_dict()["post_layernorm.bias"])
        torch.nn.init.ones_(moved.state_dict()["embeddings.class_embedding"])
        moved.save_pretrained(clip)
    convert(folder, tmp_path / "out", clip, None, "llama-3")
    ours, theirs = tensors(captioner), tensors(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name][: len(tensor)]) for name, tensor in ours.items())
    captions(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        ({"model.mm_projector.2.bias": None}, r"1 keys are missing from the checkpoint .*linear_2.bias"),
        ({"model.odd": "lm_head.weight"}, r"1 keys have no place in the model .*odd"),
        ({"model.image_newline": "model.norm.weight"}, r"1 keys have no place in the model .*image_newline"),
        ({"odd.weight": "lm_head.weight"}, "'odd.weight' is no key of a LLaVA checkpoint"),
        ({"lm_head.weight": None}, "lacks lm_head.weight"),
        ({"model.norm.weight": "lm_head.weight"}, r"language_model.norm.weight has shape"),
        ({"config": {"mm_projector_type": "linear"}}, "mm_projector_type is 'linear'; only 'mlp2x_gelu'"),
        ({"config": {"image_aspect_ratio": "anyres"}}, "image_aspect_ratio is 'anyres'; only 'pad'"),
    ],
)
def test_convert_leaves_no_key_out(
    captioner: Path, clip: Path, tmp_path: Path, spoil: dict[str, Any], word: str
) -> None:
    """A key that is left over, missing or of another shape is an error that names it."""
    folder = tmp_path / "original"
    original = original_of(captioner, folder, tower=False)
    for name, source in spoil.items():
        if name == "config":
            facts = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(facts | source))
        elif source is None:
            del original[name]
        else:
            original[name] = original[source].detach().clone()
    _write(original, folder)
    with pytest.raises(UserError, match=word):
        convert(folder, tmp_path / "bad", clip, None, "llama-3")
    assert not (tmp_path / "bad").exists()


def test_assemble(captioner: Path, tmp_path: Path) -> None:
    """Stage 0: both parts arrive bit for bit, the tokenizer knows the image, and the result is what stage 1 takes."""
    from transformers import LlamaForCausalLM

    ours = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    writer = LlamaForCausalLM(ours.config.text_config)
    writer.model.load_state_dict(ours.model.language_model.state_dict())
    writer.lm_head.load_state_dict(ours.lm_head.state_dict())
    writer.save_pretrained(tmp_path / "words")
    AutoProcessor.from_pretrained(captioner).tokenizer.save_pretrained(tmp_path / "words")
    assemble(captioner, tmp_path / "words", "llama-3", tmp_path / "out", layer=-2, dtype="fp32")
    made = tensors(tmp_path / "out")
    for name, tensor in ours.state_dict().items():
        if "multi_modal_projector" not in name:
            assert torch.equal(made[name][: len(tensor)], tensor), name
    with pytest.raises(UserError, match="no checkpoint folder"):
        assemble(tmp_path / "nothing", tmp_path / "words", "plain", tmp_path / "bad")
