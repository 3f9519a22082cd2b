"""The captioner as it is trained: which parameters, adapters, and a loss that computes only supervised logits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

from hpc.base.errors import UserError
from recap.sft.attention import boundaries
from recap.sft.attention import choose as choose_attention
from recap.sft.settings import LoraSettings, SftConfig


class CaptionLoss(nn.Module):
    """Cross entropy of the supervised tokens of packed rows.

    Args:
        llava: the model.
        chunk: supervised positions whose logits are in memory at a time (in the backward pass they are recomputed);
            0: all.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, chunk: int) -> None:
        super().__init__()
        self.llava, self._chunk = llava, chunk

    def forward(self, micro: dict[str, Any]) -> torch.Tensor:
        """Sum of the losses, float32 scalar.

        Args:
            micro: a dict of
                input_ids, position_ids: int64 [rows, tokens]; positions restart with each sample.
                bounds and longest sample: see `recap.sft.attention.lengths`.
                at: int64 [n], positions in the flattened rows whose next token is supervised.
                labels: int64 [n], these next tokens.
                pixel_values: float [images, 3, side, side], in the order of the image tokens.
                image_at: int64, positions of the image tokens in the flattened rows. Without any, there is one blank
                    image, whose features are not used.

        All rows take the same path through the modules, with or without images: under FSDP2 all ranks must use their
        layers in the same order, or their collectives would not match.
        """
        model = self.llava.model
        features = torch.cat(list(model.get_image_features(micro["pixel_values"], return_dict=True).pooler_output))
        words = model.get_input_embeddings()(micro["input_ids"])
        at = micro["image_at"]
        mixed = words.flatten(0, 1).index_copy(0, at, features[: len(at)].to(words.dtype)).view_as(words)
        attention = model.language_model.config._attn_implementation
        hidden = model.language_model(
            inputs_embeds=mixed, position_ids=micro["position_ids"], use_cache=False,
            **boundaries(attention, micro, words.dtype),
        ).last_hidden_state  # fmt: skip
        return self._loss(hidden.flatten(0, 1).index_select(0, micro["at"]), micro["labels"])

    def _loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of cross entropies, float32 scalar. hidden: [n, H] of the supervised positions. labels: int64 [n]."""
        if not self._chunk or len(labels) <= self._chunk:
            return self._entropy(hidden, labels)
        parts = zip(hidden.split(self._chunk), labels.split(self._chunk), strict=True)
        return torch.stack([checkpoint(self._entropy, h, t, use_reentrant=False) for h, t in parts]).sum()

    def _entropy(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.llava.lm_head(hidden).float(), labels, reduction="sum")


def load(folder: Path, config: SftConfig, device: str = "cpu") -> CaptionLoss:
    """The model in float32 on the CPU, with adapters, and requires_grad set. device: on which it will be trained."""
    llava = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=_kernels(config, device)
    )
    return _prepared(llava, config)


def layout(folder: Path, config: SftConfig, device: str = "cpu") -> CaptionLoss:
    """The same as `load`, on the meta device."""
    with torch.device("meta"):
        llava = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.float32, attn_implementation=_kernels(config, device)
        )
        return _prepared(llava, config)


def _kernels(config: SftConfig, device: str) -> dict[str, str]:
    """transformers' name of the attention of each part. In the tower, all patches attend to each other."""
    return {"text_config": choose_attention(config.attention, device), "vision_config": "sdpa"}


def _prepared(llava: Any, config: SftConfig) -> CaptionLoss:
    add_adapters(llava, config.lora)
    choose(llava, config.trainable)
    check_rates(llava, config.rates)
    return CaptionLoss(llava, config.logit_chunk)


def add_adapters(llava: nn.Module, lora: LoraSettings) -> None:
    """Add low-rank adapters to the matrices that match `lora.targets`. The names of other parameters do not change."""
    if not lora.rank:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("config: `lora.rank`: peft is not installed. pip install peft, or set it to 0.") from error
    wanted = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets)
    try:
        inject_adapter_in_model(wanted, llava)
    except ValueError as error:
        raise UserError(f"config: `lora.targets`: {error}") from error


def merge_adapters(llava: nn.Module) -> None:
    """Merge the adapters into their matrices, in place, and remove them."""
    for parent in list(llava.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "base_layer") and hasattr(child, "merge"):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())


def choose(llava: Any, patterns: Iterable[str]) -> None:
    """Set requires_grad: parameters whose name matches a pattern and adapters are trained, others are frozen.

    Layers of the vision tower after the one whose features are used are never trained, since nothing depends on them.
    """
    wanted = [re.compile(pattern) for pattern in patterns]
    names = [name for name, _ in llava.named_parameters()]
    for pattern in wanted:
        if not any(pattern.search(name) for name in names):
            raise UserError(
                f"config: `trainable`: {pattern.pattern!r} matches no parameter. "
                f"Names look like {names[0]}, {names[-1]}."
            )
    behind = _behind_features(llava)
    for name, parameter in llava.named_parameters():
        trained = "lora_" in name or any(pattern.search(name) for pattern in wanted)
        parameter.requires_grad_(trained and not (behind and behind.search(name)))


def _behind_features(llava: Any) -> re.Pattern[str] | None:
    """A pattern of the vision tower's parameters that the used features do not depend on; None where that is not
    known."""
    layer, vision = llava.config.vision_feature_layer, llava.config.vision_config
    if not isinstance(layer, int) or vision.model_type != "clip_vision_model":
        return None
    count = vision.num_hidden_layers
    used = layer if layer >= 0 else count + 1 + layer  # hidden_states[used] is the output of that many layers
    numbers = "|".join(map(str, range(used, count)))
    layers = rf"|layers\.({numbers})\." if numbers else ""
    return re.compile(rf"vision_tower.*(post_layernorm{layers})")


def check_rates(llava: nn.Module, rates: Iterable[str]) -> None:
    """UserError for a learning rate whose pattern matches no parameter that is trained."""
    trained = [name for name, p in llava.named_parameters() if p.requires_grad]
    for pattern in rates:
        if not any(re.search(pattern, name) for name in trained):
            raise UserError(
                f"config: `rates`: {pattern!r} matches none of the {len(trained)} parameters that are trained. "
                f"Names look like {trained[0]}, {trained[-1]}."
            )


def relative_rate(name: str, config: SftConfig) -> float:
    """Learning rate of a parameter of `CaptionLoss`, relative to train.lr, by the first matching pattern of `rates`."""
    own = name.removeprefix("llava.")
    return next((rate / config.train.lr for pattern, rate in config.rates.items() if re.search(pattern, own)), 1.0)


def blocks(llava: Any) -> list[nn.Module]:
    """The layers of the vision tower and the language model."""
    tower = llava.model.vision_tower
    encoder = getattr(tower, "vision_model", tower).encoder
    return [*encoder.layers, *llava.model.language_model.layers]
