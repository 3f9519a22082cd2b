"""A LLaMA-family decoder over static key-value slots: fused matrices, prefill into slots, one decode step for
all slots.

Weights come from transformers' modules; the mathematics is theirs (tests compare tokens). Shapes: B slots, T
positions of a slot, n images of a micro-batch, S tokens of a pass, H hidden, A query heads, K key-value
heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hpc.base.errors import UserError
from recap.engine.kernels import (
    add_rms_norm,
    bits,
    decode_attention,
    prefill_attention,
    quantise,
    rope_and_store,
    swiglu,
)
from recap.engine.precision import FP8, Activation

FAMILIES = ("llama", "mistral", "qwen2")


class Matrix:
    """A linear layer, in the activations' type or in fp8 with one scale an output channel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fp8: bool) -> None:
        self.bias, self.fp8 = bias, fp8
        if fp8:
            self.weight, scale = quantise(weight)
            self.scale = scale.view(1, -1)
        else:
            self.weight = weight

    def __call__(self, x: Activation) -> torch.Tensor:
        """[M, in] -> [M, out]. With fp8, `x` is the pair that the kernels make."""
        if not self.fp8:
            assert isinstance(x, torch.Tensor)
            return F.linear(x, self.weight, self.bias)
        numbers, scale = x
        if numbers.is_cuda:
            return torch._scaled_mm(
                numbers, self.weight.t(), scale, self.scale, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        product = (numbers.float() @ self.weight.float().t()) * scale * self.scale
        return (product if self.bias is None else product + self.bias).to(torch.bfloat16)

    def rows(self, start: int, stop: int) -> Matrix:
        """The matrix that computes outputs start:stop alone, sharing memory."""
        part = object.__new__(Matrix)
        part.fp8, part.weight = self.fp8, self.weight[start:stop]
        part.bias = None if self.bias is None else self.bias[start:stop]
        if self.fp8:
            part.scale = self.scale[:, start:stop]
        return part


@dataclass
class Layer:
    """One decoder layer: qkv and gate-up are one matrix each."""

    norm1: torch.Tensor
    qkv: Matrix
    out: Matrix
    norm2: torch.Tensor
    gate_up: Matrix
    down: Matrix


class Decoder:
    """The decoder and its cache.

    Args:
        model: transformers' `LlavaForConditionalGeneration`, or a causal language model.
        slots: B; one more is kept for rows without a request.
        span: T, the positions of a slot.
        fp8: whether the layers' matrices are fp8 (the head, embeddings and attention are not).
        kv_fp8: whether the cache is.
    """

    def __init__(
        self, model: Any, slots: int, span: int, device: torch.device, dtype: torch.dtype, fp8: bool, kv_fp8: bool
    ) -> None:
        language, config = getattr(model.model, "language_model", model.model), model.config.get_text_config()
        check_family(config, span)
        self.slots, self.span, self.dtype, self.fp8, self.device = slots, span, dtype, fp8, device
        self.eps, self.heads, self.kv_heads = (
            config.rms_norm_eps,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.embedding = language.embed_tokens.weight.to(device, dtype)
        self.norm = language.norm.weight.to(device, dtype)
        # A tied head shares the embedding's memory.
        tied = model.lm_head.weight is language.embed_tokens.weight
        self.head = self.embedding if tied else model.lm_head.weight.to(device, dtype)
        self.layers = [self._layer(layer) for layer in language.layers]
        positions = torch.arange(span, device=language.embed_tokens.weight.device)[None]
        cos, sin = language.rotary_emb(torch.zeros(1, dtype=torch.float32, device=positions.device), positions)
        self.cos, self.sin = (table[0].to(device, dtype).contiguous() for table in (cos, sin))
        self.dim = self.cos.shape[1]
        self.allocate(slots, kv_fp8)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return Layer(
            norm1=layer.input_layernorm.weight.to(self.device, self.dtype),
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            out=self._matrix(attention.o_proj),
            norm2=layer.post_attention_layernorm.weight.to(self.device, self.dtype),
            gate_up=self._matrix(mlp.gate_proj, mlp.up_proj),
            down=self._matrix(mlp.down_proj),
        )

    def _matrix(self, *parts: Any) -> Matrix:
        weights = [part.weight.detach().to(self.device, self.dtype) for part in parts]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # a single one may share the model's memory
        biases = [part.bias for part in parts if part.bias is not None]
        bias = torch.cat([b.to(self.device, self.dtype) for b in biases]) if biases else None
        return Matrix(weight, bias, self.fp8)

    def allocate(self, slots: int, kv_fp8: bool) -> None:
        """A cache [layers, B + 1, K, T, D] each for keys and values; zeros, for masked positions must be
        finite."""
        shape = (len(self.layers), slots + 1, self.kv_heads, self.span, self.dim)
        self.slots = slots
        self.keys = torch.zeros(shape, device=self.device, dtype=FP8 if kv_fp8 else self.dtype)
        self.values = torch.zeros_like(self.keys)

    def copy(self, source: torch.Tensor, target: torch.Tensor, start: int, stop: int) -> None:
        """Copy positions start .. stop of slots `source` to slots `target`, int64 [n] each (or one source for all)."""
        for cache in (bits(self.keys), bits(self.values)):
            cache[:, target, :, start:stop] = cache[:, source, :, start:stop]

    def prefill(
        self, x: torch.Tensor, slots: torch.Tensor, start: int, last: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Run S tokens a row, write their keys and values, attend to all positions before them.

        Args:
            x: embeddings [n, S, H] of positions start .. start + S. Rows are padded on the right: what
                follows a row's last token is written to the cache, never attended to, and overwritten by its
                caption.
            slots: int64 [n], the rows' slots.
            start: positions already in the cache.
            last: int64 [n], each row's last position; None where nothing is predicted (a shared part).

        Returns:
            Logits [n, vocabulary] that follow position `last`, or None.
        """
        rows, width, hidden = x.shape
        times = torch.arange(start, start + width, device=x.device).repeat(rows)
        owners = slots.repeat_interleave(width)
        delta, residual = x.reshape(rows * width, hidden), None
        for index, layer in enumerate(self.layers[:-1]):
            normed, residual = add_rms_norm(delta, residual, layer.norm1, self.eps, self.fp8)
            qkv, keys, values = layer.qkv(normed), self.keys[index], self.values[index]
            rope_and_store(qkv, self.cos, self.sin, keys, values, owners, times, 0)
            mixed = prefill_attention(qkv, self.cos, self.sin, keys, values, slots, start, self.heads)
            delta, residual = self._after_attention(layer, mixed, residual)
        layer, index = self.layers[-1], len(self.layers) - 1
        normed, residual = add_rms_norm(delta, residual, layer.norm1, self.eps, self.fp8)
        # In the last layer all tokens need keys and values; only the last token needs the rest.
        width_q = self.heads * self.dim
        keys, values = self.keys[index], self.values[index]
        kv = layer.qkv.rows(width_q, layer.qkv.weight.shape[0])(normed)
        rope_and_store(kv, self.cos, self.sin, keys, values, owners, times, 0)
        if last is None:
            return None
        at = torch.arange(rows, device=x.device) * width + last - start
        one = (bits(normed[0])[at].view(FP8), normed[1][at]) if isinstance(normed, tuple) else normed[at]
        qkv = layer.qkv(one)  # its keys and values are written again, unchanged
        query = rope_and_store(qkv, self.cos, self.sin, keys, values, slots, last, self.heads)
        mixed = decode_attention(query, keys, values, slots, last + 1)
        return self._logits(*self._after_attention(layer, mixed, residual[at]))

    def step(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocabulary] after `tokens` [B] at `positions` [B] of all slots. Fixed shapes: can be
        captured."""
        slots, lengths = torch.arange(self.slots, device=tokens.device), positions + 1
        delta, residual = F.embedding(tokens, self.embedding), None
        for index, layer in enumerate(self.layers):
            normed, residual = add_rms_norm(delta, residual, layer.norm1, self.eps, self.fp8)
            keys, values = self.keys[index], self.values[index]
            query = rope_and_store(layer.qkv(normed), self.cos, self.sin, keys, values, slots, positions, self.heads)
            mixed = decode_attention(query, keys, values, None, lengths)
            delta, residual = self._after_attention(layer, mixed, residual)
        assert residual is not None
        return self._logits(delta, residual)

    def _after_attention(
        self, layer: Layer, mixed: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output projection and feed-forward: (what the next block adds, residual stream)."""
        out = layer.out(quantise(mixed) if self.fp8 else mixed)
        normed, residual = add_rms_norm(out, residual, layer.norm2, self.eps, self.fp8)
        return layer.down(swiglu(layer.gate_up(normed), self.fp8)), residual

    def _logits(self, delta: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        normed, _ = add_rms_norm(delta, residual, self.norm, self.eps)
        assert isinstance(normed, torch.Tensor)
        return F.linear(normed, self.head)


def check_family(config: Any, span: int) -> None:
    """Raise UserError for a decoder that is not computed as this module computes it."""
    advice = "Use captioner.backend=transformers."
    if config.model_type not in FAMILIES:
        raise UserError(
            f"The native engine runs decoders of {', '.join(FAMILIES)}, not {config.model_type!r}. {advice}"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(f"The native engine runs SwiGLU decoders, not hidden_act={config.hidden_act!r}. {advice}")
    windowed = config.model_type == "mistral" or getattr(config, "use_sliding_window", False)
    window = getattr(config, "sliding_window", None) if windowed else None
    if window and span > window:
        raise UserError(f"The native engine has no sliding window ({window} positions; {span} are needed). {advice}")
    rope = config.rope_parameters
    if rope["rope_type"] in ("dynamic", "longrope") or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"The native engine does not run rotary embeddings {dict(rope)}. {advice}")
    if span > config.max_position_embeddings:
        raise UserError(
            f"Prompt and caption need {span} positions and the decoder has {config.max_position_embeddings}. "
            "Lower captioner.max_tokens or shorten the prompts."
        )
