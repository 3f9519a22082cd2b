"""Whether references entail a text, by a classifier of sentence pairs that was trained on entailment (such as MNLI)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.score.model_folder import check_kind, check_precision, files_of
from recap.score.scorer import REFERENCES, TEXTS, ScoreInput, text_field
from recap.score.settings import Entailment

_KIND = "ForSequenceClassification"


class EntailmentScorer:
    """See recap.score.scorer.Scorer. The premise is a reference, the hypothesis the text; with several references the
    value is the mean of the probabilities."""

    needs = frozenset({TEXTS, REFERENCES})
    geometries: list[Geometry] = []

    def __init__(self, name: str, config: Entailment, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.nli.{name}"
        check_precision(config.precision, self._key)
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]
            self.fields += [(text_field(f"contradiction_{name}", text), pa.float32())] if config.contradiction else []

    def identity(self) -> dict[str, Any]:
        made = files_of(self.config.model, f"{self._key}.model", f"AutoModel{_KIND}'s")
        self._labels()
        return {"model": made}

    def describe(self) -> str:
        return f"whether references entail texts, by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.text_model import TextModel

        self._places = self._labels()
        self._model = TextModel.open(self.config.model, f"AutoModel{_KIND}", device, self.config.precision)

    def _labels(self) -> dict[str, int]:
        """By field: the place, among the model's logits, of the label whose probability it holds."""
        config = check_kind(self.config.model, f"{self._key}.model", _KIND)
        wanted = {
            self.name: "entail",
            **({f"contradiction_{self.name}": "contra"} if self.config.contradiction else {}),
        }
        return {field: label_index(config, beginning, f"{self._key}.model") for field, beginning in wanted.items()}

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        pairs = list(dict.fromkeys((r, text) for row in rows for text in row.texts.values() for r in row.references))
        encoded = self._model.encode([premise for premise, _ in pairs], [text for _, text in pairs])
        made = self._model.run(encoded, lambda output, _: output.logits.float().softmax(-1))
        known = dict(zip(pairs, zip(made, encoded, strict=True), strict=True))
        found: list[dict[str, Any]] = []
        for row in rows:
            values: dict[str, Any] = {}
            for name, text in row.texts.items() if row.references else ():
                of_all = [known[reference, text] for reference in row.references]
                values[text_field(f"cut_{self.name}", name)] = any(one.cut for _, one in of_all)
                for field, place in self._places.items():
                    values[text_field(field, name)] = fmean(float(shares[place]) for shares, _ in of_all)
            found.append(values)
        return found


def label_index(config: dict[str, Any], beginning: str, key: str) -> int:
    """The number of the label in config.json's id2label that begins with `beginning` (lower case).

    Raises:
        UserError: no label begins so, or several do.
    """
    labels = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
    places = [number for number, label in labels.items() if label.lower().startswith(beginning)]
    if len(places) != 1:
        told = ", ".join(labels.values()) or "not there"
        raise UserError(
            f"config: `{key}`: one label that begins with {beginning!r} is expected; id2label in config.json is "
            f"{told}. Write the labels' names there, in the order that the model was trained with."
        )
    return places[0]
