"""The trained transformer (diffusers' PixArt) and the frozen text encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpc.base.errors import UserError
from recap.dit.settings import DitModelConfig
from recap.dit.startable import check_start


def build(config: DitModelConfig, channels: int, side: int, text_width: int) -> Any:
    """A PixArtTransformer2DModel with PixArt's initial weights (or those of `config.start`).

    Args:
        channels, side: of the latents, whose height and width are `side`. text_width: of the text encoder's states.

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
    """Initialise as DiT and PixArt-alpha: cross-attention and the output layer are zero, all else is Xavier-uniform.

    PixArt initialises the projections of text and time with a deviation of 0.02, which is Xavier's at its width of
    1152. At small widths that would make them too weak for most of a short training.
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
