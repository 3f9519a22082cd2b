"""The frozen text encoder of a text-to-image model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc.base.errors import UserError
from recap.dit.encoder_files import CLIP, check_encoder, part


class TextEncoder(nn.Module):
    """A frozen CLIP text tower or T5 encoder. Texts are lower-cased and stripped, as in diffusers' pipelines.

    Args:
        folder: of a CLIPModel, CLIPTextModel or T5EncoderModel with its tokenizer.
        context: the most tokens of a text.

    Raises:
        UserError: the folder holds no such model or no tokenizer, or the model does not take that many tokens.
    """

    def __init__(self, folder: str | Path, context: int) -> None:
        super().__init__()
        from transformers import AutoTokenizer

        self.folder, self.context = Path(folder), context
        self.model = _encoder(Path(folder), context)
        self.model.requires_grad_(False).eval()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(part(Path(folder), "tokenizer"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"config: `model.text_encoder`: {folder} has no tokenizer that transformers loads."
            ) from error
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        words, limit = self.model.get_input_embeddings().num_embeddings, len(self.tokenizer)
        if limit > words:
            raise UserError(
                f"config: `model.text_encoder`: {folder}: its tokenizer has {limit:,} tokens, it {words:,}."
            )

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def train(self, mode: bool = True) -> TextEncoder:
        """Does nothing: the encoder stays in evaluation mode."""
        return self

    def flops(self, length: int) -> float:
        """FLOPs of encoding one text of `length` tokens."""
        config = self.model.config
        kernels = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear))
        heads = config.num_attention_heads * getattr(config, "d_kv", config.hidden_size // config.num_attention_heads)
        return 2.0 * kernels * length + 4.0 * config.num_hidden_layers * length**2 * heads

    def tokens(self, texts: Sequence[str], pad_to: int = 0) -> dict[str, torch.Tensor]:
        """ids int64 and mask bool, [N, T]. T is `pad_to`, or the length of the longest text rounded up to a multiple of
        8, so that compiled blocks get few shapes."""
        limit = pad_to or self.context
        cleaned = [text.lower().strip() for text in texts]
        rows = self.tokenizer(cleaned, max_length=limit, truncation=True)["input_ids"]
        length = pad_to or min(-(-max(map(len, rows)) // 8) * 8, self.context)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, found in enumerate(rows):
            ids[row, : len(found)], mask[row, : len(found)] = torch.tensor(found), True
        return {"ids": ids, "mask": mask}

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the context."""
        lengths = self.tokenizer([text.lower().strip() for text in texts])["input_ids"]
        return sum(len(ids) > self.context for ids in lengths)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States of all tokens, [N, T, width]; those of padding are meaningless.

        CLIP's text tower is causal, so that padding after a text needs no mask. T5 gets an additive mask: transformers
        would copy a mask of 0 and 1 to the host, and wait for it.
        """
        if self.model.config.model_type in CLIP:
            return self.model(input_ids=ids)[0]
        dtype = self.model.dtype
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return self.model(input_ids=ids, attention_mask=added[:, None, None, :])[0]

    def encode(self, texts: Sequence[str], pad_to: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """States [N, T, width] and mask bool [N, T], on the encoder's device."""
        device = next(self.model.parameters()).device
        tokens = {name: value.to(device) for name, value in self.tokens(texts, pad_to).items()}
        return self(**tokens), tokens["mask"]


def encoder_layout(folder: str | Path, context: int) -> nn.Module:
    """The frozen encoder without weights, on torch's default device."""

    def laid_out(kind: Any, where: Path) -> Any:
        return kind(kind.config_class.from_pretrained(where))

    made: nn.Module = _encoder(Path(folder), context, laid_out)
    return made.requires_grad_(False)


def _encoder(folder: Path, context: int, opened: Callable[[Any, Path], Any] | None = None) -> Any:
    from transformers import CLIPTextModel, T5EncoderModel

    kind = CLIPTextModel if check_encoder(folder, context) in CLIP else T5EncoderModel
    return (opened or _loaded)(kind, part(folder, "text_encoder"))


def _loaded(kind: Any, folder: Path) -> Any:
    """The model, loaded without transformers' report of unused weights (a CLIP's image tower is not used here)."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(folder, use_safetensors=True)
    finally:
        logging.set_verbosity(before)
