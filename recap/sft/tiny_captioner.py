"""The tiny captioner that ships: `LlavaForConditionalGeneration`, 1.9 M parameters, for the words of a generated world.

The checkpoint in recap/demo/captioner has this shape, and was trained from random weights by the toolkit's own
fine-tuning job (`python -m hpc.launch configs/sft/demo.yaml`: 100,000 generated flags, 32 CPU-minutes on two cores). No
real flag, picture or text was used. The generator was tuned on the "train" flags of flags_truth.csv, by an author who
knows the other flags too. `python -m recap.evaluate.captioner --model recap/demo/captioner` scores it on the held-out
flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from recap.engine.settings import PAPER_PROMPT

IMAGE_SIZE, PATCH = 64, 8
PAD, EOS, IMAGE = 0, 1, 2
VOCABULARY = 640

World = Callable[[int, int], tuple[Any, Image.Image, str]]
"""(seed, index) -> (truth, picture, caption)."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a world's captions and the prompt, whose words are single tokens. Any other
    text can be encoded, too.
    """
    texts = [world(-1, index)[2] for index in range(3000)]
    texts += [f"USER: \n{PAPER_PROMPT}\nASSISTANT:\n"] * 300
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<eos>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """A processor that pads to a square on mid-grey, resizes to 64 x 64, and scales to [-1, 1]."""
    image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """A CLIP tower (4 layers, width 128) and a LLaMA (3 layers, width 160), with heads of 32, which attention kernels
    support. Random weights."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    # The default deviation (0.02) is tiny beside the patches' values, and positions matter most for flags.
    for name, weight in model.named_parameters():
        if name.endswith("position_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = None, EOS, PAD
    generation.max_new_tokens, generation.do_sample = 128, False
    return model
