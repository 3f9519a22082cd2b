"""One stage of a CLIP training as a task of the trainer core (`recap.train.task.Task`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recap.clip import weights as formats
from recap.clip.encoder import Features
from recap.clip.evaluate import measure
from recap.clip.images import training_crop
from recap.clip.objective import Objective
from recap.clip.settings import ClipConfig, Stage
from recap.clip.tokens import Tokens
from recap.data.images import BadImage
from recap.data.joined import Joined
from recap.data.samples import PreparedSample, Samples, SharedInput, image_of
from recap.model_files import weights_digest
from recap.randomness import draw, mixed
from recap.text_policy import Drawn, TextPolicy
from recap.train.task import Batch, EvaluationContext


@dataclass
class Pair:
    """A usable sample. pixels: uint8 [3, H, W]. texts: those that were drawn for it."""

    pixels: np.ndarray
    texts: list[Drawn]


class ClipTask:
    """Pairs of images and texts from tars and columns, at one resolution.

    Args:
        number: of the stage. Each stage has its own order of samples.
        shared: files that rank 0 made about tars and columns; None: they are read here.
        start: folder of the weights that this stage starts from; "": random weights.
    """

    def __init__(self, config: ClipConfig, number: int, shared: SharedInput | None, start: str) -> None:
        self.config, self.stage = config, config.stages[number]
        self.model_config = _with(config, start)
        self.tokens = Tokens(config.model)
        self.policy = TextPolicy(config.text)
        self.context = self.stage.tokens or config.model.context
        self._seed = mixed(config.train.seed, number)
        pixels = config.data.pixels
        total = config.stage_settings(self.stage).samples
        names = [*self.policy.columns, *([pixels] if pixels else [])]
        self.samples: Samples[Pair] = Samples(config.data, names, self._seed, shared, pixels, total, self._prepare)

    # --- the model --------------------------------------------------------------------------

    def module(self) -> nn.Module:
        start, loss = self.model_config.start, self.config.loss
        bias = formats.learned_bias(start) if start and loss.kind == "sigmoid" else None
        return Objective(self._model(), loss, *self.config.model.normalisation, bias)

    def _model(self) -> Any:
        return formats.build(self.model_config, self.stage.image, self.tokens.eos, self.config.loss.temperature)

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        assert isinstance(module, Objective)
        return module.model.blocks()

    def rate(self, name: str) -> float:
        return 1.0

    def all_used(self) -> bool:
        return True

    def constrain(self, module: nn.Module) -> None:
        objective: Any = module.module if isinstance(module, DistributedDataParallel) else module
        objective.constrain()

    def identity(self) -> str:
        start = self.model_config.start
        digest = weights_digest(Path(start)) if start else f"seed {self.config.train.seed}"
        model = {**asdict(self.model_config), "start": "", "tokenizer": ""}
        facts = [digest, model, self.stage.image, self.config.loss.kind, self.samples.digest()]
        content = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def manifests(self) -> dict[str, str]:
        return self.samples.manifests

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        model = self._model()  # frozen parameters come from `start`
        bias = weights.get(formats.BIAS)
        named = {name.removeprefix("model."): t.cpu() for name, t in weights.items() if name != formats.BIAS}
        found = model.load_state_dict(named, strict=False)
        fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
        missing = [name for name in found.missing_keys if name not in fixed and "position_ids" not in name]
        assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)
        formats.save(model, self.model_config, self.tokens, self.stage.image, folder, bias)

    def evaluate(self, module: nn.Module, context: EvaluationContext) -> dict[str, float]:
        """Every evaluation of the config, at this stage's resolution and context."""
        found: dict[str, float] = {}
        for name, config in self.config.evaluate.items():
            features = Features(
                module, self.tokens, self.stage.image, self.context, device=context.ranks.device, batch=config.batch,
                prefix=config.prefix, between=context.between, group=context.ranks.control,
            )  # fmt: skip
            found |= {f"{name}/{metric}": value for metric, value in measure(features, config).items()}
        return found

    # --- the data ---------------------------------------------------------------------------

    def size(self) -> int:
        return self.samples.size()

    def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
        """See `Task.batch`. It has a single micro-batch of B pairs, since the loss needs all of them at once.

        images: uint8 [B, 3, H, W]. ids: int64 [B, texts, context]. keep, where patches are dropped: int64 [B, kept],
        the numbers of the patches that are kept. `tokens` counts patches and text tokens.
        """
        ready = self.samples.take(first, count, rank, world)
        ids = self._ids(ready)
        micro = {"images": torch.from_numpy(np.stack([r.value.pixels for r in ready])), "ids": torch.from_numpy(ids)}
        if self.stage.keep_patches < 1:
            micro["keep"] = torch.from_numpy(np.stack([self._kept_patches(r) for r in ready]))
        tokens = len(ready) * self._pair_tokens()
        padding = int((ids == self.tokens.pad).sum())
        rejected = [r for sample in ready for r in sample.rejected]
        names = [r.name for r in ready]
        flops = len(ready) * pair_flops(self.config, self.stage, count)
        return Batch([micro], len(ready), tokens, tokens - padding, names, rejected, self._text_counts(ready), flops)

    def close(self) -> None:
        self.samples.close()

    def _prepare(self, sample: Joined, epoch: int) -> Pair | str:
        texts = self.policy.draw(sample.columns, self._seed, epoch, sample.name)
        if not texts:
            return "text: every column is empty"
        try:
            data = image_of(sample, self.config.data)
            pixels = training_crop(data, self.stage.image, self._seed, epoch, sample.name, self.config.area)
        except BadImage as error:
            return error.reason
        return Pair(pixels, texts)

    def _ids(self, ready: list[PreparedSample[Pair]]) -> np.ndarray:
        """Token ids [samples, texts, context]."""
        texts = [(r, number, drawn) for r in ready for number, drawn in enumerate(r.value.texts)]
        ids = self.tokens.ids([drawn.text for _, _, drawn in texts])
        cut = [
            self.policy.cut(tokens, self._seed, r.epoch, f"{r.name}/{number}")
            for tokens, (r, number, _) in zip(ids, texts, strict=True)
        ]
        prefixes = [self.policy.prefix(drawn.column) for _, _, drawn in texts]
        return self.tokens.shape(cut, prefixes, self.context).reshape(len(ready), self.config.text.texts, self.context)

    def _text_counts(self, ready: list[PreparedSample[Pair]]) -> dict[str, float]:
        """By column: how many images have their (first) text from it."""
        return {f"text/{name}": sum(r.value.texts[0].column == name for r in ready) for name in self.policy.sources}

    def _kept_patches(self, ready: PreparedSample[Pair]) -> np.ndarray:
        """int64 [kept]: numbers of the patches of a sample that are kept, drawn by a hash of the sample and the
        epoch."""
        patches = (self.stage.image // self.config.model.patch) ** 2
        kept = max(1, round(patches * self.stage.keep_patches))
        order = np.random.Generator(np.random.Philox(key=draw(self._seed, ready.epoch, ready.name, "patches")))
        return np.sort(order.permutation(patches)[:kept])

    # --- figures ----------------------------------------------------------------------------

    def _pair_tokens(self) -> int:
        patches = round((self.stage.image // self.config.model.patch) ** 2 * self.stage.keep_patches)
        return patches + 1 + self.context * self.config.text.texts


def pair_flops(config: ClipConfig, stage: Stage, batch: int) -> float:
    """FLOPs of training on one image and its texts: two for each multiply-add, forward, and twice as many backward,
    except for the patch embedding, whose input needs no gradient.

    Args:
        batch: images of a step over all ranks; each is compared with all texts.
    """
    model, texts = config.model, config.text.texts
    patches = (stage.image // model.patch) ** 2
    length = round(patches * stage.keep_patches) + 1
    total = 0.0
    for tower, tokens, times in (
        (model.vision_tower, length, 1),
        (model.text_tower, stage.tokens or model.context, texts),
    ):
        layer = 12 * tower.width**2 * tokens + 2 * tokens**2 * tower.width
        total += times * (tower.layers * layer + tower.width * model.dimension)
    directions = 1 if config.loss.kind == "sigmoid" else 2
    total += directions * texts * batch * model.dimension
    return 6.0 * total + 4.0 * patches * 3 * model.patch**2 * model.vision_tower.width


def _with(config: ClipConfig, start: str) -> Any:
    """The model's config with `start` replaced."""
    return type(config.model)(**{**asdict(config.model), "start": start})
