"""Whether image and text match, by a head that looks at both together: BLIP's (Li et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recap.score.model_folder import check_kind, check_precision, files_of
from recap.score.scorer import IMAGE, TEXTS, ScoreInput, text_field
from recap.score.settings import Matching

if TYPE_CHECKING:
    import torch

    from recap.engine.decode import Geometry

_KIND = "BlipForImageTextRetrieval"


class MatchingScorer:
    """See recap.score.scorer.Scorer. An image's features are computed once for all texts of its row."""

    needs = frozenset({IMAGE, TEXTS})

    def __init__(self, name: str, config: Matching, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.itm.{name}"
        check_precision(config.precision, self._key)
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        made = files_of(self.config.model, f"{self._key}.model", f"transformers' {_KIND}'s")
        check_kind(self.config.model, f"{self._key}.model", _KIND)
        return {"model": made}

    def describe(self) -> str:
        return f"whether image and text match, by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.image_model import ImageModel
        from recap.score.text_model import TextModel

        self._images = ImageModel(self.config.model, _KIND, device, self.config.precision)
        self._texts = TextModel(self.config.model, self._images.model)
        self.geometries = [self._images.geometry]

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        import torch

        shown = [row for row in rows if row.picture and row.texts]
        of_row = [(at, name) for at, row in enumerate(shown) for name in row.texts]
        encoded = self._texts.encode([shown[at].texts[name] for at, name in of_row])
        found: dict[tuple[int, str], float] = {}
        with torch.inference_mode():
            model = self._images.model
            seen: Any = model.vision_model(self._images.pixels(shown)).last_hidden_state if shown else None
            for places, inputs in self._texts.parts(encoded):
                shares = self._match_probabilities(model, seen[[of_row[place][0] for place in places]], inputs)
                found |= dict(zip([of_row[place] for place in places], shares, strict=True))
        cut = {place: one.cut for place, one in zip(of_row, encoded, strict=True)}
        numbers = {id(row): at for at, row in enumerate(shown)}
        return [self._row_values(row, numbers[id(row)], found, cut) if id(row) in numbers else {} for row in rows]

    def _row_values(
        self, row: ScoreInput, at: int, found: dict[tuple[int, str], float], cut: dict[tuple[int, str], bool]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {text_field(self.name, name): found[at, name] for name in row.texts}
        return made | {text_field(f"cut_{self.name}", name): cut[at, name] for name in row.texts}

    @staticmethod
    def _match_probabilities(model: Any, images: torch.Tensor, inputs: dict[str, torch.Tensor]) -> list[float]:
        """Probability that image and text match, for images' features [b, P, D] and as many texts; computed as in the
        model's own `forward`."""
        read = model.text_encoder(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=images,
            encoder_attention_mask=images.new_ones(images.shape[:2]).long(), return_dict=True,
        )  # fmt: skip
        return model.itm_head(read.last_hidden_state[:, 0]).double().softmax(-1)[:, 1].tolist()
