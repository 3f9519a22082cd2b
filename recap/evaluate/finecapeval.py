"""FineCapEval: whether a caption has what people noticed of background, objects and relations (arXiv 2205.13115).

Its file has several rows for each image: image, caption, and phrases for background, object and relation. The score of
a phrase is the share of its words that the caption has. Scores are averaged over an image's phrases, then over images.

The published script searches for stems as substrings of the caption ("cat" is in "scattered", and "hous" not in
"Houses"), splits phrases only at a semicolon after a backslash, drops a row where one of four texts is missing, counts
an image without phrases as 0, and fails where a caption is missing. Here stems are compared with stems of words,
phrases are split at every semicolon, the other texts of an incomplete row are used, an image without phrases is left
out of that mean, and a missing caption counts 0.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from hpc.base.errors import UserError
from recap.data.headers import without_dot_slash
from recap.evaluate.features import Features, found_within, stacked
from recap.evaluate.intervals import Mean, bootstrap_mean

KINDS = ("background", "object", "relation")
RANKS = (1, 5, 10)
_NOTHING = {"", "nan", "none", "null", "n/a", "na", "-"}  # what annotators and tables write for no phrase

Image = str


@dataclass
class Annotations:
    """Annotations by image key. captions: written by people. phrases: by kind and image."""

    captions: dict[Image, list[str]] = field(default_factory=dict)
    phrases: dict[str, dict[Image, list[str]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    @property
    def images(self) -> list[Image]:
        every = [*self.captions, *(image for found in self.phrases.values() for image in found)]
        return list(dict.fromkeys(every))


def read(path: Path) -> Annotations:
    """The annotations in a csv file of the published form. UserError for another form."""
    found = Annotations()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            wanted = ("image", "caption", *KINDS)
            if lacking := [name for name in wanted if name not in (rows.fieldnames or ())]:
                raise UserError(
                    f"evaluate: --data {path} has no column {lacking[0]!r} (but {', '.join(rows.fieldnames or ())}): "
                    f"expected FineCapEval.csv with {', '.join(wanted)}."
                )
            for row in rows:
                _add(found, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"evaluate: --data {path} cannot be read: {error}") from error
    if not any(found.phrases.values()):
        raise UserError(f"evaluate: --data {path} has no phrase of {', '.join(KINDS)}.")
    return found


def _add(found: Annotations, row: Mapping[str, str | None]) -> None:
    name = PurePosixPath(without_dot_slash((row["image"] or "").strip()))
    image = str(name.with_suffix("") if re.fullmatch(r"\.(jpe?g|png|webp|gif)", name.suffix, re.I) else name)
    if caption := _said(row["caption"]):
        found.captions.setdefault(image, []).append(caption)
    for kind in KINDS:
        for phrase in re.split(r"\\?;", row[kind] or ""):
            if words_of(said := _said(phrase)):
                found.phrases[kind].setdefault(image, []).append(said)


def _said(text: str | None) -> str:
    said = (text or "").strip()
    return "" if said.lower() in _NOTHING else said


def words_of(text: str) -> list[str]:
    """The Porter stems of a text's words, in lower case.

    >>> words_of("Two cats, running!")
    ['two', 'cat', 'run']
    """
    return _stemmer().stemWords(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


@cache
def _stemmer() -> Any:
    try:
        import snowballstemmer
    except ImportError as error:
        raise UserError("evaluate: FineCapEval's words are stemmed. pip install snowballstemmer") from error
    return snowballstemmer.stemmer("porter")


def recall(caption: str, phrases: Sequence[str]) -> float:
    """The mean over phrases of the share of their words that a caption has."""
    said = set(words_of(caption))
    shares = [[word in said for word in words_of(phrase)] for phrase in phrases]
    return sum(sum(share) / len(share) for share in shares) / len(shares)


@dataclass(frozen=True)
class Recalled:
    """recall: in %, by kind, over the images with phrases of the kind. missing: how many images have no caption."""

    recall: dict[str, Mean]
    missing: int


def compute(annotations: Annotations, captions: Mapping[Image, str]) -> Recalled:
    """The recall over all annotated images. That of a missing caption is 0.

    Args:
        captions: by image key.
    """
    found = {
        kind: bootstrap_mean(
            {image: 100 * recall(captions.get(image, ""), phrases) for image, phrases in images.items()}
        )
        for kind, images in annotations.phrases.items()
        if images
    }
    return Recalled(found, sum(not captions.get(image, "").strip() for image in annotations.images))


def retrieval(features: Features, images: Sequence[Image]) -> tuple[dict[int, Mean], int]:
    """(R@1, R@5 and R@10 in % of captions that search for their image among the annotated ones, number of missing
    captions).

    Raises:
        UserError: no annotated image has features.
    """
    keys = features.keys()
    samples = [keys[image] for image in images if image in keys and keys[image] in features.images]
    if not samples:
        raise UserError(f"evaluate: no annotated image has features in {features.run} (one is {images[0]!r}).")
    stack = stacked(features.images, samples)
    texts = [features.texts.get(sample) for sample in samples]
    found = {
        most: bootstrap_mean(
            {
                sample: 0.0 if text is None else 100 * found_within(text, stack, at, most)
                for at, (sample, text) in enumerate(zip(samples, texts, strict=True))
            }
        )
        for most in RANKS
    }
    return found, sum(text is None for text in texts)
