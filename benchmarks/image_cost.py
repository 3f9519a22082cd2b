"""Arithmetic of captioning: what an image costs at least, and the bound that follows from a device's rates."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.random_captioner import Shape


@dataclass
class ImageCost:
    """What one image costs, with every exact saving counted: FLOP of passes and bytes that decoding reads."""

    vision: float
    prefill: float
    decode: float  # linear layers and head of all its steps
    weights: float  # bytes of weights that one decode step reads, shared by all slots
    cache: float  # bytes of keys and values that its steps read


def cost(shape: Shape, prompt: int, prefix: int, tokens: float, weight_bytes: float, cache_bytes: float) -> ImageCost:
    """The cost of one image.

    Args:
        prompt: tokens of its prompt, the image's among them.
        prefix: tokens that all prompts begin with, which are computed once for all images.
        tokens: of its caption.
        weight_bytes, cache_bytes: of one weight, and of one number in the cache of keys and values.
    """
    dim = shape.head_dim or shape.hidden // shape.heads
    qkv = shape.hidden * (shape.heads + 2 * shape.kv_heads) * dim
    layer = qkv + shape.heads * dim * shape.hidden + 3 * shape.hidden * shape.ffn
    last = shape.hidden * 2 * shape.kv_heads * dim  # the last layer: keys and values only
    new, head = prompt - prefix, shape.hidden * shape.vocabulary
    patches = (shape.image // shape.patch) ** 2
    vision_layer = 4 * shape.vision_hidden**2 + 2 * shape.vision_hidden * shape.vision_ffn
    used = shape.vision_layers - 1  # LLaVA takes the features before the last layer
    vision = 2 * (patches + 1) * used * vision_layer + 4 * used * shape.vision_hidden * (patches + 1) ** 2
    vision += 2 * patches * (3 * shape.patch**2 * shape.vision_hidden)
    vision += 2 * patches * (shape.vision_hidden + shape.hidden) * shape.hidden
    attention = 4 * shape.heads * dim * (shape.layers - 1) * (prompt**2 - prefix**2) / 2
    steps = tokens - 1
    return ImageCost(
        vision=vision,
        prefill=2 * new * ((shape.layers - 1) * layer + last) + 2 * (layer + head) + attention,
        decode=2 * steps * (shape.layers * layer + head),
        weights=weight_bytes * (shape.layers * layer + head),
        cache=steps * (prompt + tokens / 2) * 2 * shape.layers * shape.kv_heads * dim * cache_bytes,
    )


def bound(
    one: ImageCost, tokens: float, slots: int, fast: float, slow: float, bandwidth: float
) -> tuple[float, dict[str, float]]:
    """Images/s if every pass ran at its measured rate and all slots were always busy, and the seconds of each
    stage.

    fast: FLOP/s of the decoder's matrices; slow: of everything else (the same number unless fp8).
    """
    # A step's matrices: bound by their arithmetic or by reading their weights once for all slots.
    steps_share = (tokens - 1) / slots
    stages = {
        "vision": one.vision / slow,
        "prefill": one.prefill / fast,
        "decode matrices": max(one.decode / fast, one.weights / bandwidth * steps_share),
        "decode attention": one.cache / bandwidth,
    }
    return 1 / sum(stages.values()), stages
