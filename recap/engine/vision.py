"""Pixels to image features: CLIP's vision transformer, only the layers that are used, and LLaVA's projector.

Shapes: n images, P tokens of an image with its class token, V vision width, H the decoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from recap.engine.kernels import add_layer_norm, quick_gelu


@dataclass
class _Linear:
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return add_layer_norm(x, residual, self.weight, self.bias, self.eps)


@dataclass
class _Layer:
    norm1: _Norm
    qkv: _Linear
    out: _Linear
    norm2: _Norm
    fc1: _Linear
    fc2: _Linear


class ImageEncoder:
    """Vision tower and projector of a `LlavaForConditionalGeneration`, on `device` in `dtype`.

    CLIP towers run here; others run as transformers' own modules.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = model.config, device, dtype
        self.clip = model.config.vision_config.model_type == "clip_vision_model"
        if not self.clip:
            self.model = model.model
            for part in (self.model.vision_tower, self.model.multi_modal_projector):
                part.to(device, dtype)
            return
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        vision = model.config.vision_config
        self.heads, self.patch, self.activation = (
            vision.num_attention_heads,
            vision.patch_size,
            quick_gelu if vision.hidden_act == "quick_gelu" else ACT2FN[vision.hidden_act],
        )
        chosen = model.config.vision_feature_layer
        self.used = [
            i if i >= 0 else vision.num_hidden_layers + 1 + i for i in ([chosen] if isinstance(chosen, int) else chosen)
        ]
        embeddings = tower.embeddings
        self.patches = self._place(embeddings.patch_embedding.weight.flatten(1))
        self.positions = self._place(embeddings.position_embedding.weight)
        self.class_token = self._place(embeddings.class_embedding)
        self.pre_norm = self._norm(tower.pre_layrnorm)
        self.layers = [self._layer(layer) for layer in tower.encoder.layers[: max(self.used)]]
        self.projector = [self._linear(projector.linear_1), self._linear(projector.linear_2)]
        self.projector_activation = ACT2FN[model.config.projector_hidden_act]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [n, 3, size, size] -> features [n, tokens, H]."""
        if not self.clip:
            return torch.stack(list(self.model.get_image_features(pixels, return_dict=True).pooler_output))
        x = self._embed(pixels)
        images, tokens, width = x.shape
        x, _ = self.pre_norm(x.view(-1, width), None)
        delta, residual = x, None
        found = {0: x}
        for number, layer in enumerate(self.layers, start=1):
            delta, residual = self._run(layer, delta, residual, images)
            if number in self.used:
                found[number] = residual + delta
        features = torch.cat([found[number] for number in self.used], -1).view(images, tokens, -1)
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        first, second = self.projector
        return second(self.projector_activation(first(features)))

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches as one matrix product (a convolution whose stride is its size), class token, positions: [n,
        P, V]."""
        count, channels, height, width = pixels.shape
        p = self.patch
        grid = pixels[:, :, : height // p * p, : width // p * p].view(count, channels, height // p, p, width // p, p)
        flat = grid.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * p * p)
        first = self.class_token.expand(count, 1, -1)
        return torch.cat([first, F.linear(flat, self.patches)], 1) + self.positions

    def _run(
        self, layer: _Layer, delta: torch.Tensor, residual: torch.Tensor | None, images: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer on tokens [n * P, V]: (what the next block adds, residual stream)."""
        normed, residual = layer.norm1(delta, residual)
        qkv = layer.qkv(normed).view(images, -1, 3, self.heads, delta.shape[1] // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(delta.shape)
        normed, residual = layer.norm2(layer.out(mixed), residual)
        return layer.fc2(self.activation(layer.fc1(normed))), residual

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(self.device, self.dtype)

    def _norm(self, module: Any) -> _Norm:
        return _Norm(self._place(module.weight), self._place(module.bias), module.eps)

    def _linear(self, *modules: Any) -> _Linear:
        weight = torch.cat([self._place(module.weight) for module in modules])
        biases = [self._place(module.bias) for module in modules if module.bias is not None]
        return _Linear(weight, torch.cat(biases) if biases else None)

    def _layer(self, layer: Any) -> _Layer:
        attention = layer.self_attn
        return _Layer(
            norm1=self._norm(layer.layer_norm1),
            qkv=self._linear(attention.q_proj, attention.k_proj, attention.v_proj),
            out=self._linear(attention.out_proj),
            norm2=self._norm(layer.layer_norm2),
            fc1=self._linear(layer.mlp.fc1),
            fc2=self._linear(layer.mlp.fc2),
        )
