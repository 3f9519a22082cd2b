"""Floating-point operations of a training step, by the model's shapes and by which parts are trained.

Matrices, convolutions and attention are counted: the tower once for each image, the layers once for each token, the
head once for each supervised token. As usual, attention is counted for all pairs of a sample's tokens, although causal
kernels skip half of them. Recomputed activations are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Costs:
    """FLOPs of training, forward and backward, for each token, pair of tokens in a sample, image, and supervised
    token."""

    token: float
    pair: float
    image: float
    answer: float

    def of(self, tokens: int, images: int, answers: int) -> float:
        """FLOPs of one sample. tokens: including those of its images."""
        return self.token * tokens + self.pair * tokens**2 + self.image * images + self.answer * answers


def costs_of(llava: Any) -> Costs:
    """The costs of a model. A forward pass takes 2 operations for each weight and token; a backward pass takes 2 more
    for the gradient of a matrix that is trained, and 2 for that of its input where anything before it is trained."""
    tower = getattr(llava.model.vision_tower, "vision_model", llava.model.vision_tower)
    side, patch = llava.config.vision_config.image_size, llava.config.vision_config.patch_size
    patches, width = (side // patch) ** 2, llava.config.vision_config.hidden_size
    image, moved = _matrices(tower.embeddings.patch_embedding, False, False) * patches, _trained(tower.embeddings)
    used = _layers_used(llava.config.vision_feature_layer, len(tower.encoder.layers))
    for number, layer in enumerate(tower.encoder.layers):
        before, moved = moved, moved or (_trained(layer) and number < used)
        flows = moved and number < used  # no gradient reaches layers after the features that are used
        image += _matrices(layer, flows, before) * (patches + 1) + _attention(width, flows) * (patches + 1) ** 2
    before, projector = moved, llava.model.multi_modal_projector
    moved = moved or _trained(projector)
    features = patches + (llava.config.vision_feature_select_strategy != "default")
    image += _matrices(projector, moved, before) * features
    text = llava.model.language_model
    moved = moved or _trained(text.embed_tokens)
    token = pair = 0.0
    heads = llava.config.text_config.num_attention_heads * text.layers[0].self_attn.head_dim
    for layer in text.layers:
        before, moved = moved, moved or _trained(layer)
        token += _matrices(layer, moved, before)
        pair += _attention(heads, moved)
    moved = moved or _trained(text.norm)
    return Costs(token, pair, image, _matrices(llava.lm_head, moved, moved))


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _matrices(module: nn.Module, flows: bool, before: bool) -> float:
    """Operations for each token. flows: whether a gradient passes through. before: whether the input needs one."""
    kernels = [p for p in module.parameters() if p.ndim >= 2]
    found = sum(p.numel() * (2.0 + 2.0 * p.requires_grad + 2.0 * flows) for p in kernels)
    if flows and not before:  # the input of the first trained part needs no gradient
        found -= sum(2.0 * p.numel() for p in _first(module))
    return found


def _first(module: nn.Module) -> list[nn.Parameter]:
    attention = getattr(module, "self_attn", None)
    if attention is None:
        linear = getattr(module, "linear_1", None)
        return [linear.weight] if linear is not None else []
    projections = [getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")]
    found = [named for projection in projections for named in projection.named_parameters()]
    return [p for name, p in found if p.ndim >= 2 and "lora_B" not in name]


def _attention(width: int, flows: bool) -> float:
    """Operations for each pair of tokens: scores and values, and twice as many in the backward pass."""
    return 4.0 * width * (3 if flows else 1)


def _layers_used(chosen: int | list[int], count: int) -> int:
    """How many layers of the tower are used: hidden_states[n] is the output of n layers."""
    numbers = [chosen] if isinstance(chosen, int) else chosen
    return max(number if number >= 0 else count + 1 + number for number in numbers)
