"""The paper's architecture, which `CLIPModel` cannot express: a text tower without causal mask, pooling at the last
token, and the mean of the patches as the image's feature.

Parameter names and shapes are those of the released weights (open_clip's `CustomTextCLIP`), so that these can be
loaded.

    B images · N patches, class token first · T tokens · W width · D shared dimension
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recap.clip.settings import ClipModelConfig, Tower


class Attention(nn.Module):
    """Self-attention with the parameter names of torch's `MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BNW: torch.Tensor) -> torch.Tensor:
        batch, length, width = x_BNW.shape
        qkv = F.linear(x_BNW, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.ModuleDict({"c_fc": wide, "c_proj": narrow})
        deep = width**-0.5 * (2 * layers) ** -0.5
        for linear, std in ((self.attn.out_proj, deep), (wide, (2 * width) ** -0.5), (narrow, deep)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BNW: torch.Tensor) -> torch.Tensor:
        x_BNW = x_BNW + self.attn(self.ln_1(x_BNW))
        return x_BNW + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x_BNW))))


class Transformer(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(tower.width, tower.heads, tower.layers) for _ in range(tower.layers))

    def forward(self, x_BNW: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x_BNW = block(x_BNW)
        return x_BNW


class VisionTower(nn.Module):
    """A ViT with fixed sin-cos positions, whose mean of patches is normalised and projected."""

    def __init__(self, tower: Tower, patch: int, image: int, dimension: int) -> None:
        super().__init__()
        width = tower.width
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(sincos_2d(width, image // patch), requires_grad=False)
        self.transformer = Transformer(tower)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dimension) * width**-0.5)

    def forward(
        self, pixels: torch.Tensor, keep: torch.Tensor | None = None, patches: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(features [B, D], with `patches` also those of the patches in the same space [B, N, D], else None).

        Args:
            pixels: normalised float [B, 3, H, W].
            keep: int64 [B, K], numbers of the patches that are kept; None: all.
        """
        x_BNW = self.conv1(pixels).flatten(2).transpose(1, 2)
        x_BNW = x_BNW + self.positional_embedding[1:]
        if keep is not None:
            x_BNW = x_BNW.gather(1, keep[:, :, None].expand(-1, -1, x_BNW.shape[2]))
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(x_BNW), 1, -1)
        x_BNW = self.transformer(torch.cat([first.to(x_BNW.dtype), x_BNW], 1))[:, 1:]
        return self.ln_post(x_BNW.mean(1)) @ self.proj, self.ln_post(x_BNW) @ self.proj if patches else None


class TextTower(nn.Module):
    """A transformer encoder over all tokens, including padding. The last position is the text's feature [B, D]."""

    def __init__(self, tower: Tower, vocabulary: int, context: int, dimension: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, tower.width)
        self.positional_embedding = nn.Parameter(torch.randn(context, tower.width) * 0.01)
        self.transformer = Transformer(tower)
        self.ln_final = nn.LayerNorm(tower.width)
        self.text_projection = nn.Parameter(torch.randn(tower.width, dimension) * tower.width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTW = self.token_embedding(ids_BT) + self.positional_embedding[: ids_BT.shape[1]]
        return self.ln_final(self.transformer(x_BTW))[:, -1] @ self.text_projection


class RecapClip(nn.Module):
    """Both towers, and the logarithm of the inverse temperature."""

    def __init__(self, config: ClipModelConfig, image: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision_tower, config.patch, image, config.dimension)
        self.text = TextTower(config.text_tower, config.vocabulary, config.context, config.dimension)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # FSDP2 does not shard scalars

    def encode_image(
        self, pixels: torch.Tensor, keep: torch.Tensor | None = None, patches: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.visual(pixels, keep, patches)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.text(ids)

    def blocks(self) -> list[nn.Module]:
        return [*self.visual.transformer.resblocks, *self.text.transformer.resblocks]


def sincos_2d(width: int, grid: int) -> torch.Tensor:
    """Fixed sin-cos positions of a class token (zeros) and grid x grid patches, as in MAE: columns first, then rows."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    parts = []
    for places in (columns, rows):
        angles = places.reshape(-1, 1) * frequencies
        parts += [np.sin(angles), np.cos(angles)]
    made = np.concatenate([np.zeros((1, width)), np.concatenate(parts, 1)])
    return torch.from_numpy(made).float()


def resample_positions(positions: torch.Tensor, grid: int) -> torch.Tensor:
    """Positions of a class token and a square of patches, resampled for grid x grid patches (bicubic, antialiased)."""
    old = math.isqrt(len(positions) - 1)
    if old == grid:
        return positions
    square = positions[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], resized.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(positions.dtype)])
