"""A reward model's number: a transformer with one logit, of a text or of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.score.model_folder import check_kind, check_precision, files_of
from recap.score.scorer import IMAGE, TEXTS, ScoreInput, text_field
from recap.score.settings import Reward

_KINDS = {"texts": "ForSequenceClassification", "image": "ForImageClassification"}


class RewardScorer:
    """See recap.score.scorer.Scorer."""

    def __init__(self, name: str, config: Reward, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.reward.{name}"
        check_precision(config.precision, self._key)
        if config.of not in _KINDS:
            raise UserError(f"config: `{self._key}.of`: {config.of!r} is unknown. Write {' or '.join(_KINDS)}.")
        self._of_texts = config.of == "texts"
        self.needs = frozenset({TEXTS if self._of_texts else IMAGE})
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = [] if self._of_texts else [(name, pa.float32())]
        for text in texts if self._of_texts else ():
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        kind = _KINDS[self.config.of]
        made = files_of(self.config.model, f"{self._key}.model", f"AutoModel{kind}'s with one label")
        told = check_kind(self.config.model, f"{self._key}.model", kind)
        if (count := len(told.get("id2label") or "??")) != 1:
            raise UserError(
                f"config: `{self._key}.model`: {self.config.model} has {count} labels, a reward is one number. "
                "Train it with num_labels=1, or score it as scorers.nli where its labels are of entailment."
            )
        return {"model": made}

    def describe(self) -> str:
        return f"reward of {self.config.of} by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        kind = f"AutoModel{_KINDS[self.config.of]}"
        if self._of_texts:
            from recap.score.text_model import TextModel

            self._texts = TextModel.open(self.config.model, kind, device, self.config.precision)
        else:
            from recap.score.image_model import ImageModel

            self._images = ImageModel(self.config.model, kind, device, self.config.precision)
            self.geometries = [self._images.geometry]

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        if not self._of_texts:
            made = self._images.run(rows, lambda model, pixels: model(pixel_values=pixels).logits)
            return [{} if one is None else {self.name: float(one[0])} for one in made]
        texts = list(dict.fromkeys(text for row in rows for text in row.texts.values()))
        encoded = self._texts.encode(texts)
        found = self._texts.run(encoded, lambda output, _: output.logits)
        known = dict(zip(texts, zip(found, encoded, strict=True), strict=True))
        return [
            {k: v for name, text in row.texts.items() for k, v in self._text_values(name, *known[text])} for row in rows
        ]

    def _text_values(self, name: str, logits: np.ndarray, encoded: Any) -> list[tuple[str, Any]]:
        return [(text_field(self.name, name), float(logits[0])), (text_field(f"cut_{self.name}", name), encoded.cut)]
