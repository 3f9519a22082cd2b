"""Random language models of texts, with a tokenizer: what tests and benchmarks of text engines run on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from benchmarks.random_captioner import Shape, make_config, make_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message.role | upper }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make(folder: Path, shape: Shape | None = None, seed: int = 0, context: int = 4096, ends: int = 12) -> Path:
    """Write a random `LlamaForCausalLM` and its tokenizer to `folder`.

    Args:
        context: positions that it says to have.
        ends: how many of the tokens end a text: random weights hardly ever say the real one.
    """
    shape = shape or Shape(vocabulary=512)
    tokenizer = make_tokenizer(shape.vocabulary)
    tokenizer.chat_template = TEMPLATE
    config = make_config(shape, tokenizer).text_config
    config.max_position_embeddings = context
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.normal_(0, 1.0)
            else:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    first = len(tokenizer) - ends
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, *range(first, first + ends)],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
