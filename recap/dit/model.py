"""The trained transformer (diffusers' PixArt) and the frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc.errors import UserError
from recap.dit.encoder_files import CLIP, check_encoder, part
from recap.dit.settings import DitModelConfig
from recap.dit.startable import check_start


def build(config: DitModelConfig, channels: int, side: int, text_width: int) -> Any:
    """A PixArtTransformer2DModel with PixArt's initial weights (or those of `config.start`).

    Args:
        channels: of the latents. side: of the latents, in places. text_width: of the text encoder's states.

    Raises:
        UserError: patches do not divide the latents, or `start` is of another shape.
    """
    from diffusers import PixArtTransformer2DModel

    shape = config.shape
    if side % shape.patch:
        raise UserError(
            f"config: `model.size`: latents of {side} x {side} do not divide into patches of {shape.patch}. "
            "Choose another patch, or another model.image."
        )
    if config.start:
        return _started(config, channels, side, text_width)
    model = PixArtTransformer2DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.width // shape.heads,
        num_layers=shape.layers,
        in_channels=channels,
        out_channels=channels * (2 if config.learned_sigma else 1),
        cross_attention_dim=shape.width,
        caption_channels=text_width,
        sample_size=side,
        patch_size=shape.patch,
        use_additional_conditions=False,
    )
    _initialise(model)
    return model


def _started(config: DitModelConfig, channels: int, side: int, text_width: int) -> Any:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_pretrained(config.start, use_safetensors=True)
    check_start(config, dict(model.config), channels, side, text_width)
    return model


def _initialise(model: Any) -> None:
    """As DiT and PixArt-alpha start: every block as if it had no text, the output at zero, all else Xavier.

    PixArt's normal initialisation of the text's and time's projections (0.02) is Xavier's at its width of 1152; at
    small widths it would mute them for most of a short training.
    """

    def xavier(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    model.apply(xavier)
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(patches.weight.shape[0], -1))
    for block in model.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(model.proj_out.weight)


class TextEncoder(nn.Module):
    """A frozen CLIP text tower or T5 encoder. Texts are lower-cased and stripped, as diffusers' pipelines do.

    Args:
        folder: of a CLIPModel, CLIPTextModel or T5EncoderModel with its tokenizer.
        context: tokens of a text at most.

    Raises:
        UserError: the folder holds neither, has no tokenizer, or cannot take that many tokens.
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
        """Stays as it is: frozen, without dropout."""
        return self

    def flops(self, length: int) -> float:
        """Of the states of one text of so many tokens."""
        config = self.model.config
        kernels = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear))
        heads = config.num_attention_heads * getattr(config, "d_kv", config.hidden_size // config.num_attention_heads)
        return 2.0 * kernels * length + 4.0 * config.num_hidden_layers * length**2 * heads

    def tokens(self, texts: Sequence[str], pad_to: int = 0) -> dict[str, torch.Tensor]:
        """ids int64 and mask bool, [N, T]; T: the longest of these texts, to a multiple of 8 (compiled blocks see few
        shapes), or `pad_to`."""
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
        """States of all tokens, [N, T, width]; those of padding are not to be used.

        A CLIP's text tower is causal, so that the padding behind a text needs no mask; a T5 gets one that adds up.
        transformers would read a mask of 0 and 1 on the host, and wait for it.
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
    """The frozen encoder without its weights, on torch's default device."""

    def laid_out(kind: Any, where: Path) -> Any:
        return kind(kind.config_class.from_pretrained(where))

    made: nn.Module = _encoder(Path(folder), context, laid_out)
    return made.requires_grad_(False)


def _encoder(folder: Path, context: int, opened: Callable[[Any, Path], Any] | None = None) -> Any:
    from transformers import CLIPTextModel, T5EncoderModel

    kind = CLIPTextModel if check_encoder(folder, context) in CLIP else T5EncoderModel
    return (opened or _loaded)(kind, part(folder, "text_encoder"))


def _loaded(kind: Any, folder: Path) -> Any:
    """Without a table of the weights that are left over: a CLIP's image tower is not wanted here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(folder, use_safetensors=True)
    finally:
        logging.set_verbosity(before)
