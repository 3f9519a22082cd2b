"""Likeness of texts by sentence embeddings (Reimers and Gurevych 2019): the cosine with the nearest reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.score.model_folder import check_precision, config_of, files_of, json_of
from recap.score.scorer import REFERENCES, TEXTS, ScoreInput, text_field
from recap.score.settings import Similarity

_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


class SimilarityScorer:
    """See recap.score.scorer.Scorer. Tokens are pooled into one vector as the folder of sentence-transformers says; for
    another encoder their mean is taken."""

    needs = frozenset({TEXTS, REFERENCES})
    geometries: list[Geometry] = []

    def __init__(self, name: str, config: Similarity, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.similarity.{name}"
        check_precision(config.precision, self._key)
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        folder, key = self.config.model, f"{self._key}.model"
        what = "sentence-transformers' or any encoder of transformers with a fast tokenizer"
        made = files_of(folder, key, what, "*_Pooling/config.json")
        config_of(folder, key)
        pooling(folder, key)
        return {"model": made}

    def describe(self) -> str:
        return f"likeness of texts and references by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.text_model import TextModel

        how, limit = pooling(self.config.model, f"{self._key}.model")
        self._mean = how == "mean"
        self._model = TextModel.open(self.config.model, "AutoModel", device, self.config.precision, limit)

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        vectors, cut = self.vectors([text for row in rows for text in (*row.texts.values(), *row.references)])
        return [self._row_values(row, vectors, cut) for row in rows]

    def vectors(self, given: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """By text: its embedding, float64 [D] of length 1, and whether the model's context cut it."""
        texts = list(dict.fromkeys(given))
        encoded = self._model.encode(texts)
        made = self._model.run(encoded, self._pooled)
        vectors = {text: one / np.linalg.norm(one) for text, one in zip(texts, made, strict=True)}
        return vectors, {text: one.cut for text, one in zip(texts, encoded, strict=True)}

    def _row_values(self, row: ScoreInput, vectors: dict[str, np.ndarray], cut: dict[str, bool]) -> dict[str, Any]:
        found: dict[str, Any] = {text_field(f"cut_{self.name}", name): cut[text] for name, text in row.texts.items()}
        for name, text in row.texts.items() if row.references else ():
            nearest = max(float(vectors[text] @ vectors[reference]) for reference in row.references)
            found[text_field(self.name, name)] = nearest
        return found

    def _pooled(self, output: Any, mask: Any) -> Any:
        """One vector a text, float32 [b, D], from the model's hidden states [b, T, D] and the mask [b, T]."""
        states = output.last_hidden_state.float()
        if not self._mean:
            return states[:, 0]
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


def pooling(folder: str, key: str) -> tuple[str, int]:
    """(how the tokens of a text are pooled: "mean" or "first"; how many tokens a text may have, 0: the folder does not
    say), as a folder of sentence-transformers says.

    Raises:
        UserError: it has modules or a pooling that are not known here.
    """
    root = Path(folder)
    if not (root / "modules.json").is_file():
        return "mean", 0
    modules = json_of(root / "modules.json", key)
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise UserError(f"config: `{key}`: {folder} has a module {unknown[0]}; known are {', '.join(_MODULES)}.")
    if any(module["path"] for module in modules if str(module["type"]).endswith("Transformer")):
        raise UserError(f"config: `{key}`: {folder} keeps its transformer in a folder of its own. Name that one.")
    how = "mean"
    for module in modules:
        if str(module["type"]).endswith("Pooling"):
            config = json_of(root / module["path"] / "config.json", key)
            modes = [name for name, value in config.items() if name.startswith("pooling_mode") and value is True]
            if len(modes) != 1 or modes[0] not in _POOLINGS:
                raise UserError(f"config: `{key}`: {folder} pools by {', '.join(modes) or 'nothing'}; known are "
                                f"{', '.join(_POOLINGS)}.")  # fmt: skip
            how = _POOLINGS[modes[0]]
    settings = root / "sentence_bert_config.json"
    return how, int(json_of(settings, key).get("max_seq_length") or 0) if settings.is_file() else 0
