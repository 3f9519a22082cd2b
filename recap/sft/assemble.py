"""Stage 0: combine a CLIP vision tower with a language model of the LLaMA family, with a new projector between them.

    python -m recap.sft.assemble --vision CLIP --language LLM --template llama-3 OUT [--layer -2] [--dtype bf16]

CLIP and LLM are checkpoint folders as transformers writes them; CLIP may also be a LLaVA checkpoint, whose tower is
taken, and LLM a GGUF file (its weights are dequantised; needs the package gguf). OUT is a
`LlavaForConditionalGeneration` checkpoint with its processor, ready to be the `model` of stage 1. Images are padded to
a square on CLIP's mean colour, as LLaVA-1.5 does.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)
from transformers.utils import is_gguf_available

from hpc.base.errors import Exit, Parser, UserError
from recap.sft.saving import end_captions, save
from recap.sft.task import features
from recap.sft.templates import IMAGE, TEMPLATES, Renderer

_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def assemble(
    vision: Path, language: Path, template: str, out: Path, *, layer: int = -2, dtype: str = "bf16", seed: int = 0
) -> None:
    """Write the checkpoint. Raises UserError for parts that do not fit."""
    for place in (vision, language):
        if not (place / "config.json").is_file() and not (place is language and place.suffix == ".gguf"):
            raise UserError(f"assemble: {place} is no checkpoint folder (no config.json)")
    torch.manual_seed(seed)
    tower = tower_of(vision)
    writer, tokenizer = language_model(language)
    llava = join(tower, writer, image_tokenizer(tokenizer), layer)
    processor = processor_of(tokenizer, tower.config, vision)
    renderer = Renderer(tokenizer, template, features(llava.config), IMAGE)
    end_captions(llava, tokenizer, renderer.end)
    save(llava, processor, out, _DTYPES[dtype], renderer.chat_template())


def tower_of(folder: Path) -> CLIPVisionModel:
    """The vision tower of a CLIP checkpoint, or of a LLaVA one; float32."""
    if AutoConfig.from_pretrained(folder).model_type == "llava":
        return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).model.vision_tower
    return CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)


def language_model(place: Path) -> tuple[Any, Any]:
    """(model in float32, tokenizer) of a checkpoint folder or of a GGUF file."""
    if place.suffix != ".gguf":
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), AutoTokenizer.from_pretrained(place)
    if not is_gguf_available():
        raise UserError(f"assemble: {place} is a GGUF file. pip install gguf, or name a checkpoint folder")
    if not place.is_file():
        raise UserError(f"assemble: {place} does not exist")
    file = {"gguf_file": place.name}
    writer = AutoModelForCausalLM.from_pretrained(place.parent, dtype=torch.float32, **file)
    del writer.config.quantization_config  # the weights are dequantised
    return writer, AutoTokenizer.from_pretrained(place.parent, **file)


def image_tokenizer(tokenizer: Any) -> Any:
    """The language model's tokenizer with a token for the image, and one for padding where it has none."""
    if not tokenizer.is_fast:
        raise UserError("assemble: the language model has no tokenizer.json (a fast tokenizer is needed)")
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = "left"
    return tokenizer


def join(tower: CLIPVisionModel, writer: Any, tokenizer: Any, layer: int) -> LlavaForConditionalGeneration:
    """Both models' weights in one LLaVA model, float32. The projector is random."""
    writer.resize_token_embeddings(max(len(tokenizer), writer.config.vocab_size), pad_to_multiple_of=64)
    shape = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower.config.to_dict()),
        text_config=writer.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(writer.config.tie_word_embeddings),
    )
    llava = LlavaForConditionalGeneration(shape)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(writer.model.state_dict())
    llava.lm_head.load_state_dict(writer.lm_head.state_dict())
    llava.generation_config = writer.generation_config
    llava.generation_config.pad_token_id = tokenizer.pad_token_id  # image_tokenizer may have added it
    return llava


def processor_of(tokenizer: Any, tower: Any, folder: Path) -> LlavaProcessor:
    """LLaVA-1.5's processor, which pads images to a square on the mean colour, then resizes them. Scale, mean and
    standard deviation are those of the tower's folder, or CLIP's where it has none."""
    side, numbers = tower.image_size, folder / "preprocessor_config.json"
    said = json.loads(numbers.read_text()) if numbers.is_file() else {}
    image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_mean=said.get("image_mean", _CLIP_MEAN), image_std=said.get("image_std", _CLIP_STD),
        rescale_factor=said.get("rescale_factor", 1 / 255),
    )  # fmt: skip
    return LlavaProcessor(
        image_processor, tokenizer, patch_size=tower.patch_size, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=IMAGE,
    )  # fmt: skip


def demo(folder: Path, seed: int) -> None:
    """Write a model with the shipped captioner's shape and random weights (`make:` of configs/sft/demo.yaml)."""
    from recap.worlds import flags

    _tiny(folder, seed, flags.sample)


def emoji(folder: Path, seed: int) -> None:
    """As `demo`, with a vocabulary for scenes of emoji (`make:` of configs/sft/emoji.yaml)."""
    from recap.worlds import emoji

    _tiny(folder, seed, emoji.sample)


def _tiny(folder: Path, seed: int, world: Any) -> None:
    from recap.sft.tiny_captioner import build_model, build_processor, build_tokenizer

    torch.manual_seed(seed)
    processor = build_processor(build_tokenizer(world))
    llava = build_model(len(processor.tokenizer))
    renderer = Renderer(processor.tokenizer, "short", features(llava.config), processor.image_token)
    end_captions(llava, processor.tokenizer, renderer.end)
    save(llava, processor, folder, torch.float32, renderer.chat_template())


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", type=Path, required=True, help="folder of a CLIP (or CLIP vision) checkpoint")
    parser.add_argument("--language", type=Path, required=True, help="folder of a causal language model, or its GGUF")
    parser.add_argument("--template", choices=list(TEMPLATES), default="vicuna")
    parser.add_argument("--layer", type=int, default=-2, help="hidden state of the tower that is used (default: -2)")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bf16")
    parser.add_argument("--seed", type=int, default=0, help="of the projector")
    parser.add_argument("out", type=Path)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        facts = {"layer": args.layer, "dtype": args.dtype, "seed": args.seed}
        assemble(args.vision, args.language, args.template, args.out, **facts)
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
