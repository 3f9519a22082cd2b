"""The `hf` architecture: transformers' `CLIPModel` (causal text tower, EOS pooling, class token), with the interface of
`recap.clip.towers.RecapClip`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from recap.clip.settings import ClipModelConfig


class HfClip(nn.Module):
    """See `recap.clip.towers.RecapClip` for the interface."""

    def __init__(self, config: ClipModelConfig, image: int, eos: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.model = CLIPModel(clip_config(config, image, eos))
        self.model.logit_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # FSDP2 does not shard scalars

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    def encode_image(
        self, pixels: torch.Tensor, keep: torch.Tensor | None = None, patches: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        vision = self.model.vision_model
        x_BNW = vision.embeddings(pixels)
        if keep is not None:
            kept = x_BNW[:, 1:].gather(1, keep[:, :, None].expand(-1, -1, x_BNW.shape[2]))
            x_BNW = torch.cat([x_BNW[:, :1], kept], 1)
        x_BNW = vision.encoder(inputs_embeds=vision.pre_layrnorm(x_BNW)).last_hidden_state
        return self.model.visual_projection(vision.post_layernorm(x_BNW[:, 0])), None

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

    def blocks(self) -> list[nn.Module]:
        return [*self.model.vision_model.encoder.layers, *self.model.text_model.encoder.layers]


def clip_config(config: ClipModelConfig, image: int, eos: int) -> CLIPConfig:
    """transformers' config of a model that this toolkit's config describes."""

    def tower(size: Any, **more: Any) -> dict[str, Any]:
        sizes = {"hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": size.heads}
        return {**sizes, "intermediate_size": 4 * size.width, "hidden_act": config.activation, **more}

    return CLIPConfig(
        projection_dim=config.dimension,
        vision_config=tower(config.vision_tower, image_size=image, patch_size=config.patch),
        text_config=tower(
            config.text_tower,
            vocab_size=config.vocabulary,
            max_position_embeddings=config.context,
            eos_token_id=eos,
            bos_token_id=None,
            pad_token_id=None,
        ),
        attn_implementation="sdpa",
    )
