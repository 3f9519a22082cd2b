"""Train the tiny captioner that ships with the project: `LlavaForConditionalGeneration`, 1.9 M parameters.

    python -m recap.demo.train_captioner OUT [--minutes 15] [--threads 1] [--seed 0] [--init DIR]

It learns from generated flags alone (`recap.worlds.flags`); no real flag, picture or text, is used. OUT is an
ordinary checkpoint directory (config, safetensors in fp16, tokenizer, processor with a chat template) that
transformers and vLLM load.

The checkpoint in recap/demo/captioner was made otherwise: from this model's shape with random weights, on the same
generated flags, by the toolkit's own fine-tuning job (`python -m hpc.launch configs/sft/demo.yaml`: 100,000 flags, 32
CPU-minutes on two cores). The generator was tuned on the "train" flags of flags_truth.csv; its author has seen the
others too, as everyone has. `python -m recap.evaluate.captioner --model recap/demo/captioner` scores it on the
held-out ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
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

from hpc.base.errors import Parser
from recap.worlds.flags import sample

PROMPT = "Please generate a detailed caption of this image. Please be as descriptive as possible."
"""The paper's prompt, word for word."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:\n' }}{% endif %}"
)
IMAGE_SIZE, PATCH = 64, 8
PAD, EOS, IMAGE = 0, 1, 2
BATCH = 16
LEARNING_RATE = 1.5e-3
VOCABULARY = 640

World = Callable[[int, int], tuple[Any, Image.Image, str]]
"""(seed, index) -> (truth, picture, caption)."""


def build_tokenizer(world: World = sample) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a world's grammar and the prompt: their words are single tokens, any other text still
    encodes.
    """
    texts = [world(-1, index)[2] for index in range(3000)]
    texts += [f"USER: \n{PROMPT}\nASSISTANT:\n"] * 300
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
    """Pad to a square on mid-gray, scale to 64 x 64, values in [-1, 1]."""
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
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """CLIP vision 4 x 128 into LLaMA 3 x 160; heads of 32, which attention kernels know."""
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
    # The default (0.02) drowns beside the patches' values, and where things are is most of what a flag is.
    for name, weight in model.named_parameters():
        if name.endswith("position_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.3)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = None, EOS, PAD
    generation.max_new_tokens, generation.do_sample = 128, False
    return model


def prompt_text(processor: LlavaProcessor) -> str:
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def batches(processor: LlavaProcessor, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless fresh flags. pixel_values (B, 3, 64, 64); input_ids, attention_mask, labels (B, tokens), -100
    off the caption.
    """
    tokenizer = processor.tokenizer
    slots = "<image>" * (IMAGE_SIZE // PATCH) ** 2
    prompt = tokenizer.encode(prompt_text(processor).replace("<image>", slots))
    for first in itertools.count(0, BATCH):
        pictures: list[Image.Image] = []
        captions: list[list[int]] = []
        for index in range(first, first + BATCH):
            _, picture, caption = sample(seed, index)
            pictures.append(picture)
            captions.append([*tokenizer.encode(caption), EOS])
        longest = max(map(len, captions))
        tails = torch.tensor([caption + [PAD] * (longest - len(caption)) for caption in captions])
        real = torch.tensor([[1] * len(caption) + [0] * (longest - len(caption)) for caption in captions])
        heads = torch.tensor(prompt).expand(BATCH, -1)
        yield {
            "pixel_values": processor.image_processor(pictures, return_tensors="pt")["pixel_values"],
            "input_ids": torch.cat([heads, tails], 1),
            "attention_mask": torch.cat([torch.ones_like(heads), real], 1),
            "labels": torch.cat([torch.full_like(heads, -100), tails.masked_fill(real == 0, -100)], 1),
        }


def rate(progress: float) -> float:
    """Share of the full learning rate at `progress` in [0, 1]: short warm-up, then linear to zero."""
    return min(1.0, progress / 0.02) * min(1.0, (1 - progress) / 0.85)


def train(model: LlavaForConditionalGeneration, processor: LlavaProcessor, minutes: float, seed: int) -> None:
    """Run for `minutes` of wall time; the schedule follows the clock, so a faster machine learns more, not
    differently.
    """
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    plain = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    model.train()
    start = time.monotonic()
    for step, batch in enumerate(batches(processor, seed)):
        progress = (time.monotonic() - start) / (60 * minutes)
        if progress >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(progress)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            sys.stdout.write(f"step {step}  {progress:4.0%}  loss {loss.item():.3f}\n")
            sys.stdout.flush()


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write an fp16 checkpoint whose vision keys read `vision_tower.vision_model.`, as vLLM wants and
    transformers accepts.
    """
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    processor.image_processor.save_pretrained(out)  # preprocessor_config.json, which older loaders ask for
    weights = {}
    for name, tensor in load_file(out / "model.safetensors").items():
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        weights[name] = tensor
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the flags")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint instead of random weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.init:  # its own tokenizer too: rows of the embedding mean what they meant
        processor = LlavaProcessor.from_pretrained(arguments.init)
        model = LlavaForConditionalGeneration.from_pretrained(arguments.init, dtype=torch.float32)
    else:
        processor = build_processor(build_tokenizer())
        model = build_model(len(processor.tokenizer))
    size = sum(weight.numel() for weight in model.parameters())
    sys.stdout.write(f"{size} parameters, {len(processor.tokenizer)} words and pieces\n")
    train(model, processor, arguments.minutes, arguments.seed)
    save(model, processor, arguments.out)


if __name__ == "__main__":
    main()
