"""Scores by a CLIP: cosine, pairwise share, RefCLIPScore. Texts that its context cuts are marked beside the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.score.clip_based import ImageAndTexts
from recap.score.scorer import IMAGE, REFERENCES, TEXTS, ScoreInput, text_field
from recap.score.settings import ClipScore

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

CLIPSCORE = 2.5
"""The factor w of CLIPScore (Hessel et al. 2021). RefCLIPScore takes it whatever `ClipScore.scale` is."""


class ClipScorer(ImageAndTexts[ClipScore]):
    """See recap.score.scorer.Scorer. A row without an image has no values."""

    def __init__(
        self, name: str, config: ClipScore, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        super().__init__(f"scorers.clip.{name}", name, config, encoders)
        where = f"config: `{self._key}"
        if not config.scale > 0:
            raise UserError(f"{where}.scale`: {config.scale} is no scale. Write 1 (the cosine), 2.5 or 100.")
        if config.share and len(texts) < 2:
            raise UserError(f"{where}.share`: a share is among two texts or more; `texts` names {len(texts)}.")
        self.texts = list(texts)
        self.needs = frozenset({IMAGE, TEXTS} | ({REFERENCES} if config.references else set()))
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]
            self.fields += [(text_field(f"share_{name}", text), pa.float32())] if config.share else []
            self.fields += [(text_field(f"ref_{name}", text), pa.float32())] if config.references else []

    def describe(self) -> str:
        scale = "cosine" if self.config.scale == 1 else f"{self.config.scale:g} x max(cosine, 0)"
        more = [name for name in ("share", "references") if getattr(self.config, name)]
        return f"{scale}{''.join(f', {name}' for name in more)} by {self.config.model} · {self.config.precision}"

    def _row_values(
        self, row: ScoreInput, image: np.ndarray | None, texts: dict[str, np.ndarray], cut: dict[str, bool]
    ) -> dict[str, Any]:
        if image is None:
            return {}
        found: dict[str, Any] = {}
        cosines = {name: float(image @ feature) for name, feature in texts.items()}
        for name, cosine in cosines.items():
            found[text_field(self.name, name)] = scaled(cosine, self.config.scale)
            found[text_field(f"cut_{self.name}", name)] = cut[row.texts[name]]
        if self.config.share and set(cosines) == set(self.texts):
            shares = softmax_percent([self._encoder.temperature * cosine for cosine in cosines.values()])
            found |= {text_field(f"share_{self.name}", n): s for n, s in zip(cosines, shares, strict=True)}
        if self.config.references and row.references:
            known = self._encoder.features(row.references)
            for name, feature in texts.items():
                nearest = max(float(reference @ feature) for reference in known)
                found[text_field(f"ref_{self.name}", name)] = ref_clip_score(cosines[name], nearest)
        return found


def scaled(cosine: float, scale: float) -> float:
    """The cosine as it is for scale 1, else scale x max(cosine, 0), as `ClipScore.scale` asks.

    >>> scaled(-0.25, 1), scaled(-0.25, 2.5), scaled(0.25, 100)
    (-0.25, 0.0, 25.0)
    """
    return cosine if scale == 1 else scale * max(cosine, 0.0)


def softmax_percent(logits: Sequence[float]) -> list[float]:
    """The softmax of logits, in percent: the shares sum to 100.

    >>> softmax_percent([3.0, 3.0])
    [50.0, 50.0]
    """
    shifted = np.exp(np.asarray(logits, np.float64) - max(logits))
    return (100 * shifted / shifted.sum()).tolist()


def ref_clip_score(image_cosine: float, reference_cosine: float) -> float:
    """RefCLIPScore (Hessel et al. 2021): harmonic mean of CLIPScore and the cosine with the nearest reference.

    >>> ref_clip_score(0.2, 0.5), ref_clip_score(-0.1, 0.9)
    (0.5, 0.0)
    """
    first, second = CLIPSCORE * max(image_cosine, 0.0), max(reference_cosine, 0.0)
    return 2 * first * second / (first + second) if first and second else 0.0
