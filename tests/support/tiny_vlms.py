"""Tiny random checkpoints of the vision language models that people caption with: the real classes, each with its
processor and chat template, made offline in about a second. All but LLaVA-NeXT are made with torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from benchmarks.random_captioner import make_tokenizer

VOCABULARY = 512
_TEXT = {  # head sizes that vLLM's CPU attention takes
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
}
_VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}


def _template(start: str, image: str, end: str, ask: str) -> str:
    """A chat template as these models have: turns of parts, an image's marks where the image stands."""
    return (
        "{% for message in messages %}" + start + "{% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}{% endfor %}" + end +
        "{% endfor %}{% if add_generation_prompt %}" + ask + "{% endif %}"
    )  # fmt: skip


def _chatml(image: str) -> str:
    return _template("<|im_start|>{{ message.role }}\n", image, "<|im_end|>\n", "<|im_start|>assistant\n")


def _tokenizer(special: list[str], named: dict[str, str], opening: bool = False) -> PreTrainedTokenizerFast:
    """`special` tokens beside a small vocabulary; `named`: attributes as the processor reads them."""
    tokenizer = make_tokenizer(384)
    if not opening:  # as Qwen's: nothing comes before every text
        tokenizer.backend_tokenizer.post_processor = None
    core = tokenizer.backend_tokenizer
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=named,
        padding_side="left",
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    return made


def _videos(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def idefics3() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"], {}, True)
    tokenizer.add_tokens([f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)], special_tokens=True)
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
        ),
        tokenizer, image_seq_len=4,
        chat_template=_template("User:", "<image>", "<end_of_utterance>\n", "Assistant:"),
    )  # fmt: skip
    config = transformers.Idefics3Config(
        vision_config={**_VISION, "image_size": 28, "patch_size": 7}, text_config={**_TEXT, "model_type": "llama"},
        scale_factor=2, image_token_id=processor.image_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    marks = {
        "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>",
    }  # fmt: skip
    tokenizer = _tokenizer([f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)], marks, True)
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
        ),
        tokenizer, _videos("SmolVLMVideoProcessor"), image_seq_len=4,
        chat_template=_template("User:", "<image>", "<end_of_utterance>\n", "Assistant:"),
    )  # fmt: skip
    config = transformers.SmolVLMConfig(
        vision_config={**_VISION, "image_size": 28, "patch_size": 7}, text_config={**_TEXT, "model_type": "llama"},
        scale_factor=2, image_token_id=processor.image_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.SmolVLMForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(["<start_of_turn>", "<end_of_turn>"], marks, True)
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28}), tokenizer, image_seq_length=4,
        chat_template="<s>" + _template(
            "<start_of_turn>{{ message.role }}\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n"
        ),
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**_TEXT, "query_pre_attn_scalar": 32, "sliding_window": 32},
        vision_config={**_VISION, "image_size": 28, "patch_size": 7, "vision_use_head": False},
        mm_tokens_per_image=4, tie_word_embeddings=False, image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config), processor


_QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in names.items()}


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(_QWEN, {})
    pixels = {"size": {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, "patch_size": 14, "merge_size": 2}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels), tokenizer, _videos("Qwen2VLVideoProcessor", **pixels),
        chat_template=_chatml(_QWEN_IMAGE),
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 14, "window_size": 56,
        "out_hidden_size": 128, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": _SECTIONS, "bos_token_id": None, "eos_token_id": 1},
        vision_config=vision, **_qwen_ids(tokenizer),
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(_QWEN, {})
    pixels = {"size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}, "patch_size": 16, "merge_size": 2}
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels), tokenizer, _videos("Qwen3VLVideoProcessor", **pixels),
        chat_template=_chatml(_QWEN_IMAGE),
    )  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 16,
        "out_hidden_size": 128, "num_position_embeddings": 36, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config={**_TEXT, "rope_parameters": {**_SECTIONS, "mrope_interleaved": True}}, vision_config=vision,
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<|im_start|>", "<|im_end|>", "<image>", "<video>"], {})
    grid, size = [[28, 56], [56, 28], [56, 56]], {"height": 28, "width": 28}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid), tokenizer,
        _videos("LlavaOnevisionVideoProcessor", size=size), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=_chatml("<image>\n"),
    )  # fmt: skip
    config = transformers.LlavaOnevisionConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7,
                       "vision_use_head": False},
        text_config={**_TEXT, "model_type": "qwen2"}, image_grid_pinpoints=grid,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(["<|im_start|>", "<|im_end|>"], marks)
    size = {"height": 28, "width": 28}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4), tokenizer,
        _videos("InternVLVideoProcessor", size=size), image_seq_length=4, chat_template=_chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config={**_TEXT, "model_type": "qwen2"}, image_token_id=processor.image_token_id, image_seq_length=4,
        downsample_ratio=0.5,
    )  # fmt: skip
    return transformers.InternVLForConditionalGeneration(config), processor


def mistral3() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"], {}, True)
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(patch_size=7, size={"longest_edge": 56}), tokenizer, patch_size=7,
        spatial_merge_size=2, chat_template="<s>" + _template("[INST]", "[IMG]", "[/INST]", ""),
    )  # fmt: skip
    config = transformers.Mistral3Config(
        vision_config={**_VISION, "model_type": "pixtral", "image_size": 56, "patch_size": 7, "head_dim": 32},
        text_config={**_TEXT, "model_type": "mistral"}, image_token_index=processor.image_token_id,
        spatial_merge_size=2,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<image>"], {}, True)
    grid, size = [[28, 56], [56, 28]], {"shortest_edge": 28}
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size=size, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
        ),
        tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=_template("USER: ", "<image>\n", "", " ASSISTANT:"),
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config={**_VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 7},
        text_config={**_TEXT, "model_type": "llama"}, image_grid_pinpoints=grid,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), processor


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    made.__name__: made
    for made in (
        idefics3, gemma3, qwen2_5_vl, qwen3_vl, llava_onevision, internvl, smolvlm, mistral3, llava_next
    )
}  # fmt: skip


def make(name: str, folder: Path) -> Path:
    """Write a random checkpoint to `folder`, as `save_pretrained` does. Its texts depend on the image."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" in parameter_name or "lm_head" in parameter_name:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.tie_weights()
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
