"""Config keys of a CLIP training, and their checks. Torch-free: login nodes read and check them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.data.column import ColumnConfig
from recap.data.samples import JoinedDataConfig, check_batch
from recap.text_policy import TextPolicyConfig
from recap.train.settings import TrainSettings

VISION = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
TEXT = {"small": (384, 12, 6), "base": (512, 12, 8), "large": (768, 12, 12), "huge": (1024, 24, 16)}
EMBED = {"S": 384, "B": 512, "L": 768, "H": 1024}
"""VISION and TEXT: width, layers and heads of towers (the paper's table 2). EMBED: dimension of the shared space, by
the vision tower's size."""

LARGEST_LOGIT_SCALE = math.log(100.0)
"""The largest logarithm of the scale: a scale of 100, as in OpenAI's CLIP."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Tower:
    width: int
    layers: int
    heads: int


@dataclass
class ClipModelConfig:
    """Which model."""

    architecture: str = semantic("recap", "recap (the paper's, as in its released weights) | hf (plain CLIPModel)")
    vision: str = semantic("B", "S | B | L | H, or WIDTHxLAYERSxHEADS")
    text: str = semantic("base", "small | base | large | huge, or WIDTHxLAYERSxHEADS")
    embed: int = semantic(0, "dimension of the shared space; 0: by the vision tower's size (its width for others)")
    patch: int = semantic(16, "pixels of a patch's side")
    context: int = semantic(128, "tokens of a text, special ones included")
    vocabulary: int = semantic(32000, "rows of the token embedding; at least the tokenizer's")
    tokenizer: str = execution("", "folder of a tokenizer that transformers loads")
    activation: str = semantic("gelu", "gelu | quick_gelu (OpenAI's weights; hf only)")
    start: str = execution("", "weights to fine-tune from: a folder that this trainer, transformers or open_clip wrote")

    @property
    def vision_tower(self) -> Tower:
        return _tower("vision", self.vision, VISION)

    @property
    def text_tower(self) -> Tower:
        return _tower("text", self.text, TEXT)

    @property
    def dimension(self) -> int:
        return self.embed or EMBED.get(self.vision, self.vision_tower.width)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the pixels' channels."""
        return IMAGENET if self.architecture == "recap" else OPENAI


@dataclass
class Stage:
    """One stage of the training, with its own resolution, length and learning rate. Fields that are 0 are `train`'s."""

    image: int = 112
    samples: int = 0
    batch: int = 0
    base_lr: float = 0.0  # rate per 256 samples
    warmup: int = -1  # samples, 0 or above 1
    tokens: int = 0  # of a text; model.context at most
    keep_patches: float = 1.0  # share of patches that are kept (FLIP)


def stage_name(number: int, stage: Stage) -> str:
    """A stage's name, of its folder under stages/ and in a dry run."""
    return f"{number}-{stage.image}px"


@dataclass
class LossConfig:
    """What is minimised."""

    kind: str = semantic("softmax", "softmax | sigmoid | multi_positive (several texts an image)")
    grouping: float = semantic(0.0, "weight of DreamLIP's grouping loss (recap architecture, several texts)")
    grouping_threshold: float | None = semantic(
        None, "its patches of a lower weight, from 0 to 1, do not count; empty: 1 over the number of patches"
    )
    temperature: float = semantic(0.07, "at the start; it is learned")
    bias: float = semantic(-10.0, "of the sigmoid loss, at the start; it is learned")
    chunk: int = execution(0, "images that are encoded at a time, with gradients cached; 0: the rank's whole batch")
    stream: int = execution(0, "columns of the logits that exist at a time; 0: all")


@dataclass
class EvaluationConfig:
    """One evaluation: a task, and where its images and texts are."""

    task: str = execution("retrieve", "retrieve | classify (zero-shot) | attribute (true or false text)")
    shards: list[str] = execution([], "tars, as in data.shards (retrieve, classify)")
    column: ColumnConfig = field(default_factory=ColumnConfig, metadata={"execution": True})  # retrieve: the texts
    karpathy: str = execution("", "retrieve: COCO's or Flickr30K's Karpathy JSON, with `images`")
    split: str = execution("test", "of the Karpathy JSON")
    folder: str = execution("", "retrieve: image/ and caption/, as Urban-1K's; classify: a folder a class")
    json: str = execution("", "attribute: ARO's JSON, with `images`")
    images: str = execution("", "folder that a JSON's image paths begin from")
    classes: str = execution("", "classify: file of class names, one a line")
    templates: str = execution("", "classify: file of prompts with {} for the name; empty: a photo of a {}.")
    label: str = execution("cls", "classify: member that holds a class's number")
    prefix: str | None = execution(None, "source token that texts are read with")
    batch: int = execution(256, "images or texts that a rank encodes at a time")


@dataclass
class ClipConfig:
    """Config keys of a CLIP training."""

    model: ClipModelConfig = field(default_factory=ClipModelConfig)
    data: JoinedDataConfig = field(default_factory=JoinedDataConfig)
    text: TextPolicyConfig = field(default_factory=TextPolicyConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: list[Stage] = semantic([], "parts of the training, one after another")
    base_lr: float = semantic(0.0, "rate per 256 samples, instead of lr: the paper's 8e-6 means 1.024e-3 at 32,768")
    area: float = semantic(0.4, "smallest share of an image that a training crop holds")
    evaluate: dict[str, EvaluationConfig] = execution({}, "name -> evaluation, each train.evaluate_every samples")
    train: TrainSettings = field(default_factory=lambda: TrainSettings(weight_decay=0.2, beta2=0.95, clip=0.0))

    def stage_settings(self, stage: Stage) -> TrainSettings:
        """The core's settings for a stage."""
        batch = stage.batch or self.train.batch
        samples = stage.samples or self.train.samples
        base = stage.base_lr or self.base_lr
        lr = base * batch / 256 if base else self.train.lr
        warmup = self.train.warmup if stage.warmup < 0 else stage.warmup
        return replace(self.train, batch=batch, samples=samples, lr=lr, warmup=warmup)


_IN_STAGES = {"epochs": "samples", "lr": "base_lr"}  # keys of `train`, and the key of a stage that replaces each


def without_effect(config: ClipConfig) -> list[str]:
    """Keys of `train` that are set although every stage overrides them."""
    stages = config.stages
    lengths, rates = all(s.samples for s in stages), bool(config.base_lr) or all(s.base_lr for s in stages)
    own = {
        "samples": lengths, "epochs": lengths, "lr": rates, "batch": all(s.batch for s in stages),
        "warmup": all(s.warmup >= 0 for s in stages),
    }  # fmt: skip
    plain = TrainSettings()
    return [key for key, is_own in own.items() if is_own and getattr(config.train, key) != getattr(plain, key)]


def check(config: ClipConfig) -> None:
    """UserError for the first setting that cannot work: what is wrong, where, and what to do."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: `{key}`: {why}.")

    model = config.model
    if model.architecture not in ("recap", "hf"):
        refuse("model.architecture", f"{model.architecture!r} is unknown. Write recap or hf")
    if model.activation not in (("gelu", "quick_gelu") if model.architecture == "hf" else ("gelu",)):
        refuse("model.activation", f"{model.activation!r} is unknown for {model.architecture}. Write gelu")
    for name, tower in (("vision", model.vision_tower), ("text", model.text_tower)):
        if tower.width % tower.heads:
            refuse(f"model.{name}", f"width {tower.width} does not divide among {tower.heads} heads")
    if not config.stages:
        refuse("stages", "empty. Name at least one, e.g. stages=[{image: 112, samples: 2560000000}]")
    for number, stage in enumerate(config.stages):
        if stage.image % model.patch:
            near = max(stage.image // model.patch, 1) * model.patch
            refuse(
                f"stages[{number}].image",
                f"{stage.image} pixels do not divide into patches of {model.patch}. "
                f"Write {near} or {near + model.patch}",
            )
        if not 0 < stage.keep_patches <= 1:
            refuse(f"stages[{number}].keep_patches", f"{stage.keep_patches} is not a share above 0, up to 1")
        if stage.tokens > model.context:
            refuse(f"stages[{number}].tokens", f"{stage.tokens} is more than model.context ({model.context})")
        batch = stage.batch or config.train.batch
        check_batch(config.data, batch)
    for key in without_effect(config):
        refuse(
            f"train.{key}",
            f"{getattr(config.train, key)} has no effect: the stages say their own. Change those (as in "
            f"stages.0.{_IN_STAGES.get(key, key)}=…), or leave it out",
        )
    if config.loss.kind not in ("softmax", "sigmoid", "multi_positive"):
        refuse("loss.kind", f"{config.loss.kind!r} is unknown. Write softmax, sigmoid or multi_positive")
    if config.text.texts > 1 and config.loss.kind != "multi_positive":
        refuse("loss.kind", f"{config.loss.kind} takes one text an image, text.texts is {config.text.texts}")
    if config.loss.grouping and model.architecture != "recap":
        refuse("loss.grouping", "needs patch features in the shared space: set model.architecture=recap")
    if (threshold := config.loss.grouping_threshold) is not None:
        if not 0 <= threshold <= 1:
            refuse("loss.grouping_threshold", f"{threshold} is not from 0 to 1, as the weights of patches are")
        if not config.loss.grouping:
            refuse("loss.grouping_threshold", "is of the grouping loss: write loss.grouping too, or leave it out")
    for name, evaluation in config.evaluate.items():
        check_evaluation(f"config: `evaluate.{name}`", evaluation)
    if bool(config.evaluate) != bool(config.train.evaluate_every):
        refuse("train.evaluate_every", "and `evaluate` go together: how often, and what. One of them is missing")
    if config.train.workers > 1:
        refuse("train.workers", f"{config.train.workers}: each would read all windows. Write 1 and raise data.decoders")


def check_evaluation(where: str, config: EvaluationConfig) -> None:
    """UserError where an evaluation lacks a setting. where: its place in the config, for the message."""

    def refuse(why: str) -> None:
        raise UserError(f"{where}: {why}.")

    if config.task not in ("retrieve", "classify", "attribute"):
        refuse(f"task {config.task!r} is unknown. Write retrieve, classify or attribute")
    if config.task == "attribute" and not config.json:
        refuse("attribute wants json and images")
    if config.task == "classify" and not (config.folder or (config.shards and config.classes)):
        refuse("classify wants shards and classes, or folder (a folder of images for each class)")
    if config.task == "retrieve" and not (config.karpathy or config.folder or config.shards):
        refuse("retrieve wants karpathy, folder or shards")
    if config.batch < 1:
        refuse(f"batch {config.batch} is less than 1")
    for path in (config.karpathy, config.folder, config.json, config.images, config.classes, config.templates):
        if path and not Path(path).exists():
            refuse(f"{path} does not exist")


def _tower(key: str, name: str, known: dict[str, tuple[int, int, int]]) -> Tower:
    if name in known:
        return Tower(*known[name])
    if not re.fullmatch(r"\d+x\d+x\d+", name):
        raise UserError(
            f"config: `model.{key}`: {name!r} is unknown. Write {', '.join(known)}, or WIDTHxLAYERSxHEADS, e.g. 64x2x2."
        )
    return Tower(*map(int, name.split("x")))
