"""BERTScore (Zhang et al. 2020): tokens of a text and of a reference are matched greedily by the cosines of their
embeddings. Equal to the package bert_score without idf weights and without its baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.score.model_folder import check_precision, config_of, files_of
from recap.score.scorer import REFERENCES, TEXTS, ScoreInput, text_field
from recap.score.settings import BertScore

_KINDS = ("precision", "recall")
_SPACED = ("roberta", "gpt2")  # model types for which bert_score puts a blank before the first word of a text


@dataclass(frozen=True)
class Embedded:
    """A text's T tokens.

    vectors: float64 [T, D], each row of length 1.
    counted: bool [T], the tokens over whose best matches the mean is taken: all but CLS and SEP, which tokens of the
        other side may still be matched with.
    """

    vectors: np.ndarray
    counted: np.ndarray


class BertScorer:
    """See recap.score.scorer.Scorer."""

    needs = frozenset({TEXTS, REFERENCES})
    geometries: list[Geometry] = []

    def __init__(self, name: str, config: BertScore, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.bert_score.{name}"
        check_precision(config.precision, self._key)
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]
            self.fields += [(text_field(f"{kind}_{name}", text), pa.float32()) for kind in _KINDS]

    def identity(self) -> dict[str, Any]:
        folder, key = self.config.model, f"{self._key}.model"
        made = files_of(folder, key, "an encoder of transformers with a fast tokenizer")
        config = config_of(folder, key)
        layers = config.get("num_hidden_layers", config.get("n_layers"))
        if not 0 <= self.config.layer <= int(layers or self.config.layer):
            raise UserError(f"config: `{self._key}.layer`: {self.config.layer}; {folder} has {layers}. 0 is the last.")
        return {"model": made}

    def describe(self) -> str:
        layer = f"layer {self.config.layer}" if self.config.layer else "the last layer"
        return f"BERTScore by {layer} of {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.text_model import TextModel

        fewer = {"num_hidden_layers": self.config.layer} if self.config.layer else {}
        self._model = TextModel.open(self.config.model, "AutoModel", device, self.config.precision, **fewer)
        self._lead = " " if self._model.model.config.model_type in _SPACED else ""
        tokenizer = self._model.tokenizer
        self._uncounted = [token for token in (tokenizer.cls_token_id, tokenizer.sep_token_id) if token is not None]

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        known, cut = self._embedded([text for row in rows for text in (*row.texts.values(), *row.references)])
        found: list[dict[str, Any]] = []
        for row in rows:
            made: dict[str, Any] = {text_field(f"cut_{self.name}", name): cut[text] for name, text in row.texts.items()}
            for name, text in row.texts.items() if row.references else ():
                scores = np.array([greedy_match(known[text], known[reference]) for reference in row.references]).max(0)
                fields = (f"precision_{self.name}", f"recall_{self.name}", self.name)
                made |= {text_field(field, name): float(score) for field, score in zip(fields, scores, strict=True)}
            found.append(made)
        return found

    def _embedded(self, texts: Sequence[str]) -> tuple[dict[str, Embedded], dict[str, bool]]:
        unique = list(dict.fromkeys(texts))
        encoded = self._model.encode(unique, lead=self._lead)
        states = self._model.run(encoded, lambda output, _: output.last_hidden_state)
        made: dict[str, Embedded] = {}
        for text, one, found in zip(unique, encoded, states, strict=True):
            vectors = found[: len(one)]
            counted = ~np.isin(one.inputs["input_ids"], self._uncounted)
            made[text] = Embedded(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), counted)
        return made, {text: one.cut for text, one in zip(unique, encoded, strict=True)}


def greedy_match(text: Embedded, reference: Embedded) -> tuple[float, float, float]:
    """(precision, recall, F1) of a text against one reference.

    Precision is the mean, over the text's tokens, of the largest cosine with a token of the reference; recall the same
    with the sides exchanged; F1 their harmonic mean. All are 0 where a side has no token that counts.

    >>> one = Embedded(np.eye(2), np.array([True, True]))
    >>> greedy_match(one, Embedded(np.eye(2)[:1], np.array([True])))
    (0.5, 1.0, 0.6666666666666666)
    """
    if not text.counted.any() or not reference.counted.any():
        return 0.0, 0.0, 0.0
    cosines = text.vectors @ reference.vectors.T
    precision = float(cosines.max(1)[text.counted].mean())
    recall = float(cosines.max(0)[reference.counted].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
