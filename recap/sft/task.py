"""Supervised fine-tuning as a task of the trainer core (`recap.train.task.Task`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from recap.data.samples import SharedInput
from recap.engine.processor import load_processor
from recap.model_files import model_identity
from recap.sft import model as models
from recap.sft.attention import lengths
from recap.sft.example import Conversations, Example
from recap.sft.flops import Costs, costs_of
from recap.sft.packing import deal, pack
from recap.sft.saving import write
from recap.sft.settings import SftConfig
from recap.sft.sources import Corpus
from recap.sft.tars import Tars
from recap.sft.templates import BadSample, Rendered, Renderer
from recap.train.parallel import to_device
from recap.train.task import Batch, EvaluationContext

WITHOUT = "without a caption"  # name of the count of samples of tars that were replaced by others


@dataclass(frozen=True)
class Ready:
    """A usable sample: its texts, its tokens, and the source of its images."""

    example: Example
    rendered: Rendered
    source: Conversations | Tars


class SftTask:
    """Conversations about images, packed, for `LlavaForConditionalGeneration`.

    Args:
        folder: the checkpoint that training starts from.
        device: "cpu" or "cuda", on which it is trained.
        shared, name: see `recap.sft.sources.Corpus`.
    """

    def __init__(
        self,
        config: SftConfig,
        folder: Path,
        device: str = "cpu",
        shared: Mapping[str, SharedInput] | None = None,
        name: str = "data",
    ) -> None:
        self.config, self.folder, self._device = config, folder, device
        self.corpus = Corpus(config.data, config.train.seed, shared, name)
        self.processor = load_processor(folder)
        shape = AutoConfig.from_pretrained(folder)
        self.side = shape.vision_config.image_size
        self._image_id = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        self.renderer = Renderer(
            self.processor.tokenizer, config.template, features(shape), self.processor.image_token,
            system=config.system, max_tokens=config.max_tokens, too_long=config.too_long,
        )  # fmt: skip
        self._held_out: SftTask | None = None
        if config.held_out:
            self._held_out = SftTask(_held_out(config), folder, device, shared, "held_out")

    # --- the model --------------------------------------------------------------------------

    def module(self) -> nn.Module:
        return models.load(self.folder, self.config, self._device)

    def layout(self) -> nn.Module:
        return models.layout(self.folder, self.config, self._device)

    @cached_property
    def costs(self) -> Costs:
        return costs_of(models.layout(self.folder, self.config, self._device).llava)

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        return models.blocks(module.llava)

    def rate(self, name: str) -> float:
        return models.relative_rate(name, self.config)

    def all_used(self) -> bool:
        """See `Task.all_used`. It is tried on the meta device, with a row that uses as little as possible: in some
        towers there may be trained layers after the features that are used."""
        module = models.layout(self.folder, replace(self.config, attention="sdpa"))
        module(to_device(self.collate([], []), torch.device("meta"))).backward()
        return all(p.grad is not None for p in module.parameters() if p.requires_grad)

    def identity(self) -> str:
        digests = {name: digest for name, digest in model_identity(self.folder).items() if name.endswith("safetensors")}
        lora, trainable = vars(self.config.lora), self.config.trainable
        content = json.dumps([digests, lora, trainable, *self.corpus.digest()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def manifests(self) -> dict[str, str]:
        return self.corpus.manifests()

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        write(self, weights, folder)

    def evaluate(self, module: nn.Module, context: EvaluationContext) -> dict[str, float]:
        """The mean loss of the supervised tokens of all held-out conversations.

        n: conversations that count. skipped: those that cannot be used. damaged: damaged tars, whose samples before the
        damage count.
        """
        held, ranks, step = self._held_out, context.ranks, self.config.train.batch
        assert held is not None, "checked with the config"
        sums = [0.0] * (3 + bool(held.corpus.tars))  # loss, supervised tokens, unusable samples, missing captions
        for first in range(0, held.size(), step):
            batch = held.batch(first, min(step, held.size() - first), ranks.rank, ranks.world)
            for micro in batch.micro:
                sums[0] += module(to_device(micro, ranks.device)).item()
                context.between()
            sums[1] += batch.weight
            sums[2] += len(batch.rejected)
            sums[3:] = [sum(pair) for pair in zip(sums[3:], batch.counts.values(), strict=True)]
        loss, tokens, rejected, *others = ranks.sums(sums)
        return {
            "held_out/loss": loss / max(tokens, 1.0), "held_out/tokens": tokens,
            "held_out/n": held.size() - rejected, "held_out/skipped": rejected,
            "held_out/damaged": sum(tars.damaged for tars in held.corpus.tars),
            **{f"held_out/{WITHOUT}": count for count in others},
        }  # fmt: skip

    # --- the data ---------------------------------------------------------------------------

    def size(self) -> int:
        return len(self.corpus)

    def ready(self, position: int) -> Ready:
        """The sample at a position of the stream. BadSample, with the sample's key in its detail, where it is
        unusable."""
        example, source = self.corpus.at(position)
        try:
            return Ready(example, self.renderer.render(example.turns, len(example.images), example.system), source)
        except BadSample as error:
            raise BadSample(error.reason, f"{example.key}: {error.detail}") from error

    def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
        """See `Task.batch`. All ranks render all texts, so that they agree on the packing without communication."""
        fit: list[Ready] = []
        keys: list[str] = []
        rejected: list[tuple[str, str]] = []
        passed = 0
        for position in range(first, first + count):
            try:
                fit.append(self.ready(position))
                keys.append(fit[-1].example.key)
                passed += fit[-1].example.passed if position % world == rank else 0
            except BadSample as error:
                if position % world == rank:
                    rejected.append((error.detail.partition(":")[0], str(error)))
        sizes = [len(sample.rendered.ids) for sample in fit]
        rows = pack(sizes, self.config.pack, self.config.rows * world)
        micro, weight, tokens, useful, flops = [], 0, 0, 0, 0.0
        for held in deal(rows, self.config.rows, rank, world):
            made = self.collate([[fit[i] for i in row] for row in held], rejected)
            micro.append(made)
            weight += len(made["labels"])
            tokens += made["input_ids"].numel() if held else 0
            texts = [fit[i].rendered for row in held for i in row]
            useful += sum(len(text.ids) for text in texts)
            flops += sum(self.costs.of(len(text.ids), text.images, sum(text.learned)) for text in texts)
        counts = {WITHOUT: float(passed)} if self.corpus.tars else {}
        return Batch(micro, float(weight), tokens, useful, keys, rejected, counts, flops)

    def collate(self, rows: Sequence[Sequence[Ready]], rejected: list[tuple[str, str]]) -> dict[str, Any]:
        """Packed rows as tensors (see `CaptionLoss.forward`). A sample whose image cannot be read is not supervised,
        and added to `rejected`."""
        full = self.config.pack if self.config.train.compile else 0  # compiled code needs a fixed shape
        longest = max([full, 1, *(sum(len(s.rendered.ids) for s in row) for row in rows)])
        ids = torch.full((max(len(rows), 1), longest), self._pad(), dtype=torch.long)
        positions = torch.arange(longest).repeat(max(len(rows), 1), 1)
        at: list[int] = []
        labels: list[int] = []
        pictures: list[Any] = []
        for number, row in enumerate(rows):
            start = 0
            for sample in row:
                tokens, end = sample.rendered.ids, start + len(sample.rendered.ids)
                ids[number, start:end] = torch.tensor(tokens)
                positions[number, start:end] = torch.arange(len(tokens))
                found = self._pictures(sample, rejected)
                pictures += found or [_blank(self.side)] * sample.rendered.images
                if found is not None:
                    learned = [i for i, mark in enumerate(sample.rendered.learned) if mark and i]
                    at += [number * longest + start + i - 1 for i in learned]
                    labels += [tokens[i] for i in learned]
                start = end
            positions[number, start:] = torch.arange(longest - start)
        pixels = self.processor.image_processor(pictures or [_blank(self.side)], return_tensors="pt")["pixel_values"]
        return {
            "input_ids": ids, "position_ids": positions, **lengths(positions), "pixel_values": pixels,
            "image_at": (ids == self._image_id).flatten().nonzero()[:, 0],
            "at": torch.tensor(at, dtype=torch.long), "labels": torch.tensor(labels, dtype=torch.long),
        }  # fmt: skip

    def _pictures(self, sample: Ready, rejected: list[tuple[str, str]]) -> list[Any] | None:
        """A sample's images; None where one cannot be read, which is added to `rejected`."""
        try:
            return [sample.source.image(handle) for handle in sample.example.images]
        except BadSample as error:
            rejected.append((sample.example.key, str(error)))
            return None

    def _pad(self) -> int:
        """The token that fills up rows: one that is not the image's."""
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0


def _held_out(config: SftConfig) -> SftConfig:
    """The config of the held-out data. It has another seed, or a generated world would give the training samples."""
    train = replace(config.train, seed=~config.train.seed)
    return replace(config, data=config.held_out, held_out=[], train=train)


def features(shape: Any) -> int:
    """The number of tokens of one image: its patches, and the class token unless the selection strategy drops it."""
    vision = shape.vision_config
    count = (vision.image_size // vision.patch_size) ** 2
    return count + (shape.vision_feature_select_strategy != "default")


def _blank(side: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (side, side))
