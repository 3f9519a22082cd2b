"""Converts original LLaVA and LLaVA-pp checkpoints, such as the paper's released captioner, to transformers' classes.

    python -m recap.sft.convert ORIGINAL OUT --vision CLIP [--tokenizer FOLDER] [--template llama-3]

ORIGINAL holds config.json and safetensors or pytorch_model*.bin with LLaVA's keys. Usually the vision tower is not
among them: --vision names the CLIP that it was trained with (mm_vision_tower in its config). The released captioner has
    no
tokenizer files: --tokenizer names the language model's folder.

Every key must match: one that is left over, missing or of another shape is an error.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hpc.base.errors import Exit, Parser, UserError
from recap.sft.assemble import image_tokenizer, processor_of, tower_of
from recap.sft.saving import end_captions, save
from recap.sft.task import features
from recap.sft.templates import IMAGE, TEMPLATES, Renderer

log = logging.getLogger(__name__)

_KEYS = [  # (LLaVA's name, transformers' name), as regular expressions; None: not a weight of the model
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"rotary_emb\.inv_freq$", None),
    (r"position_ids$", None),
    (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^lm_head\.", "lm_head."),
    (r"^model\.", "model.language_model."),
]

_TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")  # have a row for each token


def renamed(name: str) -> str | None:
    """transformers' name of a key, None for one that is not a weight.

    >>> renamed("model.mm_projector.2.bias"), renamed("model.layers.0.mlp.up_proj.weight")
    ('model.multi_modal_projector.linear_2.bias', 'model.language_model.layers.0.mlp.up_proj.weight')
    """
    for pattern, target in _KEYS:
        if re.search(pattern, name):
            return None if target is None else re.sub(pattern, target, name)
    raise UserError(f"convert: {name!r} is no key of a LLaVA checkpoint")


def convert(original: Path, out: Path, vision: Path, tokenizer: Path | None, template: str) -> None:
    """Write the converted checkpoint to `out`. UserError where something does not fit."""
    facts = _facts(original)
    weights = {new: tensor for old, tensor in _weights(original).items() if (new := renamed(old)) is not None}
    tower = tower_of(vision)
    prefix = "model.vision_tower."
    own = {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    if not any(name.startswith(prefix) for name in weights):
        weights |= own
    words = image_tokenizer(AutoTokenizer.from_pretrained(tokenizer or original))
    for name in _TABLES:
        if name not in weights:
            raise UserError(f"convert: the checkpoint lacks {name}")
    dtype = weights["lm_head.weight"].dtype
    llava = LlavaForConditionalGeneration(_shape(facts, tower.config, words, len(weights["lm_head.weight"])))
    _fill(llava, weights, words)
    renderer = Renderer(words, template, features(llava.config), IMAGE)
    processor = processor_of(words, tower.config, vision)
    if facts.get("image_aspect_ratio") != "pad":
        processor.image_processor.do_pad = False
    for folder in (original, tokenizer or original):
        if (folder / "generation_config.json").is_file():
            llava.generation_config = GenerationConfig.from_pretrained(folder)
            break
    end_captions(llava, words, renderer.end)
    save(llava, processor, out, dtype, renderer.chat_template())


def _facts(original: Path) -> dict[str, Any]:
    """The original's config.json. UserError where it is of a kind that cannot be converted."""
    try:
        facts = json.loads((original / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"convert: {original}: no readable config.json ({error})") from error
    if "mm_vision_tower" not in facts:
        raise UserError(f"convert: {original}: model type {facts.get('model_type')!r} is not an original LLaVA's")
    wanted: dict[str, list[Any]] = {
        "mm_projector_type": ["mlp2x_gelu"], "mm_vision_select_feature": ["patch"], "mm_use_im_start_end": [False],
        "image_aspect_ratio": ["pad", "square", None],  # LLaVA-1.6's anyres cuts an image into several
    }  # fmt: skip
    for key, values in wanted.items():
        if (found := facts.get(key, values[0])) not in values:
            raise UserError(f"convert: {original}: {key} is {found!r}; only {values[0]!r} can be converted")
    return facts


def _weights(original: Path) -> dict[str, torch.Tensor]:
    files = sorted(original.glob("*.safetensors"))
    if files:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    parts = sorted(original.glob("pytorch_model*.bin"))
    if not parts:
        raise UserError(f"convert: {original}: neither *.safetensors nor pytorch_model*.bin")
    return {
        name: tensor
        for part in parts
        for name, tensor in torch.load(part, map_location="cpu", weights_only=True).items()
    }


def _shape(facts: dict[str, Any], tower: Any, words: Any, vocabulary: int) -> LlavaConfig:
    known = {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling"}
    text = LlamaConfig(**{key: value for key, value in facts.items() if key in known})
    text.vocab_size = max(vocabulary, len(words))
    return LlavaConfig(
        vision_config=tower.to_dict(),
        text_config=text.to_dict(),
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        vision_feature_layer=facts.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _fill(llava: LlavaForConditionalGeneration, weights: dict[str, torch.Tensor], words: Any) -> None:
    """Load all weights. The embedding tables may lack rows for new tokens (image, padding), which get the mean of the
    other rows."""
    target = llava.state_dict()
    for name in _TABLES:
        table = weights[name]
        missing = len(target[name]) - len(table)
        if missing > 0:
            weights[name] = torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype).expand(missing, -1)])
    if left := sorted(weights.keys() - target.keys()):
        raise UserError(f"convert: {len(left)} keys have no place in the model (first: {left[0]})")
    if left := sorted(target.keys() - weights.keys()):
        raise UserError(f"convert: {len(left)} keys are missing from the checkpoint (first: {left[0]})")
    for name, tensor in weights.items():
        if tensor.shape != target[name].shape:
            raise UserError(f"convert: {name} has shape {tuple(tensor.shape)}, the model {tuple(target[name].shape)}")
    llava.load_state_dict(weights)
    log.info("%d tensors converted, vocabulary %d", len(weights), len(words))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vision", type=Path, required=True, help="folder of the CLIP it was trained with")
    parser.add_argument("--tokenizer", type=Path, help="folder of the language model's tokenizer (default: ORIGINAL)")
    parser.add_argument("--template", choices=list(TEMPLATES), default="llama-3")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(args.original, args.out, args.vision, args.tokenizer, args.template)
    except UserError as error:
        log.error("%s", error)
        return Exit.USAGE
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
