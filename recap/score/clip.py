"""Scores by a CLIP: cosine, pairwise share, RefCLIPScore. Texts that its context cuts are marked beside the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.clip.preprocessing import rules
from recap.engine.decode import Geometry
from recap.score.model_folder import check_precision, files_of
from recap.score.scorer import IMAGE, REFERENCES, TEXTS, Scored, named
from recap.score.settings import ClipScore

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

CLIPSCORE = 2.5
"""Of Hessel et al. 2021, in RefCLIPScore whatever the scale of the cosines."""


class ClipScorer:
    """See recap.score.scorer.Scorer.

    Args:
        name: of the fields.
        encoders: opened CLIPs by folder and precision, which all scorers share.
    """

    def __init__(
        self, name: str, config: ClipScore, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        where = f"config: `scorers.clip.{name}"
        check_precision(config.precision, f"scorers.clip.{name}")
        if not config.scale > 0:
            raise UserError(f"{where}.scale`: {config.scale} is no scale. Write 1 (the cosine), 2.5 or 100.")
        if config.share and len(texts) < 2:
            raise UserError(f"{where}.share`: a share is among two texts or more; `texts` names {len(texts)}.")
        self.name, self.config, self.texts, self._encoders = name, config, list(texts), encoders
        self.needs = frozenset({IMAGE, TEXTS} | ({REFERENCES} if config.references else set()))
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(named(name, text), pa.float32()), (named(f"cut_{name}", text), pa.bool_())]
            self.fields += [(named(f"share_{name}", text), pa.float32())] if config.share else []
            self.fields += [(named(f"ref_{name}", text), pa.float32())] if config.references else []

    def identity(self) -> dict[str, Any]:
        return {"model": clip_files(self.config.model, f"scorers.clip.{self.name}.model"), **rules(self.config.model)}

    def describe(self) -> str:
        scale = "cosine" if self.config.scale == 1 else f"{self.config.scale:g} x max(cosine, 0)"
        more = [name for name in ("share", "references") if getattr(self.config, name)]
        return f"{scale}{''.join(f', {name}' for name in more)} by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.encoder import ClipEncoder

        self._encoder = ClipEncoder.shared(self._encoders, self.config.model, self.config.precision, device)
        self.geometries = [self._encoder.geometry]

    def score(self, rows: Sequence[Scored]) -> list[dict[str, Any]]:
        images = self._encoder.images(rows)
        texts, cut = self._encoder.texts(rows)
        return [
            self._of(row, image, {name: texts[row.texts[name]] for name in row.texts}, cut)
            for row, image in zip(rows, images, strict=True)
        ]

    def _of(
        self, row: Scored, image: np.ndarray | None, texts: dict[str, np.ndarray], cut: dict[str, bool]
    ) -> dict[str, Any]:
        if image is None:
            return {}
        found: dict[str, Any] = {}
        cosines = {name: float(image @ feature) for name, feature in texts.items()}
        for name, cosine in cosines.items():
            found[named(self.name, name)] = scaled(cosine, self.config.scale)
            found[named(f"cut_{self.name}", name)] = cut[row.texts[name]]
        if self.config.share and set(cosines) == set(self.texts):
            shares = softmax_percent([self._encoder.temperature * cosine for cosine in cosines.values()])
            found |= {named(f"share_{self.name}", n): s for n, s in zip(cosines, shares, strict=True)}
        if self.config.references and row.references:
            known = self._encoder.features(row.references)
            for name, feature in texts.items():
                nearest = max(float(reference @ feature) for reference in known)
                found[named(f"ref_{self.name}", name)] = ref_clip_score(cosines[name], nearest)
        return found


def scaled(cosine: float, scale: float) -> float:
    """`ClipScore.scale` of a cosine.

    >>> scaled(-0.25, 1), scaled(-0.25, 2.5), scaled(0.25, 100)
    (-0.25, 0.0, 25.0)
    """
    return cosine if scale == 1 else scale * max(cosine, 0.0)


def softmax_percent(logits: Sequence[float]) -> list[float]:
    """Shares that sum to 100.

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


def clip_files(folder: str, key: str) -> dict[str, str]:
    """sha256 by name of a CLIP's weights, configs and tokenizer. UserError where there are no weights."""
    made = "an export of this toolkit, Recap-CLIP in open_clip's form or what CLIPModel.save_pretrained wrote"
    return files_of(folder, key, made)
