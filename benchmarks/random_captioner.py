"""Random LLaVA checkpoints of any shape, with a tokenizer, and random photos: what tests and benchmarks run
on.

Nothing is downloaded. Weights are larger than a trained model's at birth, so that captions depend on their
images.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A captioner's dimensions. The defaults are tiny and odd enough to show indexing errors."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    ffn: int = 96
    vocabulary: int = 384
    image: int = 28
    patch: int = 7
    vision_hidden: int = 32
    vision_layers: int = 3
    vision_heads: int = 2
    vision_ffn: int = 64
    tied: bool = False
    rope: str = "default"
    attention_bias: bool = False
    pad: bool = False


def make(folder: Path, shape: Shape, seed: int = 0, scale: float = 1.0) -> Path:
    """Write a random checkpoint (model, tokenizer, processor) to `folder`, as `save_pretrained` does."""
    tokenizer = make_tokenizer(shape.vocabulary)
    model = build(shape, tokenizer, seed, scale)
    model.save_pretrained(folder)
    write_processor(shape, tokenizer, folder)
    return folder


def build(shape: Shape, tokenizer: Any, seed: int, scale: float) -> Any:
    """The model itself, float32, in evaluation mode."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config(shape, tokenizer)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed_tokens" in name or "lm_head" in name or "position_embedding" in name:
                # A tied head would repeat the last token for ever if the embedding outweighed the layers.
                parameter.normal_(0, 0.1 if shape.tied else 1.0)
            else:
                parameter.normal_(0, scale * 1.5 / parameter[0].numel() ** 0.5)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def set_end_tokens(folder: Path, ids: list[int]) -> None:
    """Make `ids` the tokens that end a caption: random weights never say the real one."""
    settings = GenerationConfig.from_pretrained(folder)
    settings.eos_token_id = ids
    settings.save_pretrained(folder)


def photo(seed: int, width: int = 48, height: int = 40, format: str = "JPEG") -> bytes:
    """A smooth random image, encoded."""
    noise = np.random.default_rng(seed)
    small = Image.fromarray(noise.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(file, format, quality=90)
    return file.getvalue()


def make_config(shape: Shape, tokenizer: Any) -> LlavaConfig:
    rope: dict[str, Any] = {"rope_type": shape.rope, "rope_theta": 10000.0}
    if shape.rope == "llama3":
        rope |= {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim or shape.hidden // shape.heads,
        max_position_embeddings=4096,
        rope_parameters=rope,
        attention_bias=shape.attention_bias,
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_ffn,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image,
        patch_size=shape.patch,
        projection_dim=shape.vision_hidden,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(shape.image // shape.patch) ** 2,
        tie_word_embeddings=shape.tied,
    )


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with exactly `vocabulary` entries at most, trained on a few captions."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "a the red green blue flag with white star and stripes Please generate detailed caption of this image"
    core.train_from_iterator([words, words + " USER: ASSISTANT: as descriptive as possible."] * 20, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def write_processor(shape: Shape, tokenizer: Any, folder: Path) -> None:
    """Write tokenizer, image processor and chat template to `folder`."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    kind = LlavaImageProcessorPil if shape.pad else CLIPImageProcessorPil
    images = kind(
        size={"shortest_edge": shape.image},
        crop_size={"height": shape.image, "width": shape.image},
        **({"do_pad": True} if shape.pad else {}),
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
