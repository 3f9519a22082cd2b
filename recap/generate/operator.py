"""The generating operator: rows of tars and columns in, one column of answers out. Torch-free until `setup`.

A prompt format's text names columns. A row whose column is empty is skipped, or gets the text of another column instead
of an answer (`otherwise`). A row whose answer does not parse is skipped too; the answer is kept in `caption`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import OK, SKIPPED, Column, Damage, Item, Row, Shard
from recap.data.inputs import placeholder_digests
from recap.data.pictures import find_image
from recap.data.rows import JoinedRow, Rows
from recap.data.same_image import digest
from recap.data.tar_job import RowsJob
from recap.data.texts import LONGEST_TEXT, TextMember, clean
from recap.engine import Caption, Format
from recap.engine.formats import Said, bank_of, format_name, one_line, said, shuffled
from recap.engine.identity import weights_identity
from recap.generate.engine_job import ALTERNATIVE, FIELDS, PLACEHOLDER, EngineJob, RowInput
from recap.generate.parsers import Unparsed, parser_of
from recap.generate.settings import GenerateConfig

UNPARSED = "answer: unparsed"
LEAKED = "answer: leaks the prompt"
MISSING = "text: missing"
VERDICT_VERSION = 2  # of the rules by which verdicts are read from answers, part of the identity


class GenerateOperator(RowsJob, EngineJob):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = GenerateConfig
    version: ClassVar[int] = 1
    by_rule: ClassVar[frozenset[str]] = frozenset({PLACEHOLDER, LEAKED})

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        if not config.formats:
            raise UserError("config: `formats`: there are none. Write what the model is asked: see configs/prompts.")
        if config.choose not in ("one", "all"):
            raise UserError(f"config: `choose`: {config.choose!r} is unknown. Write one or all.")
        super().__init__(config.asking(), "writer", placeholder_digests(config.data))
        try:
            self._parse = parser_of(config.parse)
            for form in config.formats.values():
                if (e := form.examples) is not None:
                    bank_of(e.file, e.count, e.text, e.between)
        except (UserError, ValueError) as error:
            raise self.config_error(error) from error
        self._check_fields()
        self._text = TextMember.named(config.data.text)

    def config_error(self, error: Exception) -> UserError:
        """An engine's error with this config's keys: it says captioner for what is writer, formats and choose here."""
        text = str(error).replace("captioner.prompts", "formats").replace("captioner.formats", "choose")
        return UserError(f"config: {text.replace('captioner.', 'writer.')}")

    def _check_fields(self) -> None:
        known, columns = (
            {"key", "status", "reason", "detail", "order", *(n for n, _ in FIELDS)},
            self.config.data.columns,
        )
        if taken := [name for name, _ in self._parse.fields if name in known]:
            raise UserError(f"config: `parse`: a field {taken[0]!r} is in every column of answers. Name it otherwise.")
        for name, form in self.config.formats.items():
            for column in [*form.columns(), *([form.otherwise] if form.otherwise else [])]:
                if column not in columns:
                    raise UserError(
                        f"config: `formats.{name}`: column {column!r} is not among data.columns "
                        f"({', '.join(columns) or 'there are none'}). Describe it there, or correct its name."
                    )
            if form.otherwise and self._parse.fields:
                raise UserError(
                    f"config: `formats.{name}.otherwise`: a copied text is not parsed. Leave out one of both."
                )
        for name in self.config.numbered:
            if name not in {column for form in self.config.formats.values() for column in form.columns()}:
                raise UserError(f"config: `numbered`: no format's text has {{{name}}}. Correct it, or leave it out.")

    # --- what a login node asks ---------------------------------------------------------------

    @cached_property
    def _rows(self) -> Rows:
        forms = self.config.formats.values()
        names = [column for form in forms for column in (*form.columns(), form.otherwise) if column]
        return Rows(self.config.data, list(dict.fromkeys(names)), image=self.asking.sees)

    def identity(self) -> dict[str, Any]:
        self.check_model()
        try:
            made: dict[str, Any] = self.placeholders_digest() | weights_identity(self.config.writer)
        except FileNotFoundError as error:
            raise self.config_error(error) from error
        if columns := self._rows.identities():
            made["columns"] = columns
        examples = {n: _file_digest(f.examples.file) for n, f in sorted(self.config.formats.items()) if f.examples}
        if examples:
            made["examples"] = examples
        if self.config.parse.verdict:
            made["verdict"] = VERDICT_VERSION
        if len(self.config.formats) > 1:
            made["order"] = list(self.config.formats)  # which format a row gets depends on it
        return made

    def describe(self) -> list[tuple[str, str]]:
        rows = self._rows
        read = f"the rows of column {rows.main}" if rows.main else "samples of tars"
        beside = ", ".join(name for name in rows.columns if name != rows.main)
        fields = ", ".join(name for name, _ in self._parse.fields)
        lines = [
            ("rows", read + (f", joined with {beside}" if beside else "") + ("" if rows.tars else " · no tar read"))
        ]
        lines += [("input", rows.input)] if rows.input else []
        return [*lines, *super().describe(), *([("fields", fields)] if fields else [])]

    def column(self) -> Column:
        parsed = self._parse.fields
        alternatives = pa.list_(pa.struct([*ALTERNATIVE, *parsed]))
        fields = [(name, alternatives if name == "alternatives" else kind) for name, kind in FIELDS]
        shown = [("order", pa.list_(pa.string()))]  # names of columns in the order in which they were shown
        ordered = any(form.order for form in self.config.formats.values())
        return Column(self.config.column, [*fields, *(shown if ordered else []), *parsed])

    # --- what an engine process asks ----------------------------------------------------------

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return self._rows.read(shard, self._row_input)

    def _row_input(self, row: JoinedRow) -> tuple[RowInput, int]:
        image, reason, detail, text = None, "", "", None
        if self._needs_image and row.sample is not None:
            found = find_image(row.sample, self.config.data.image)
            image, reason, detail = found.image, found.reason, found.detail
        if row.sample is not None:
            text, _ = self._text.read(row.sample.members, row.sample.odd, LONGEST_TEXT)
        texts = {name: said(value) for name, value in row.columns.items()}
        texts |= {name: numbered(texts[name]) for name in self.config.numbered}
        names = [format_name(answer) for answer in self.asking.names(row.key)]
        sha256 = digest(image) if image is not None else row.image
        name = names[0] if len(self.config.formats) > 1 else ""
        asked = RowInput(image, sha256, text, reason=reason, detail=detail, texts=texts, format=name)
        if not reason:
            asked = self._with_columns(asked, [self.config.formats[name] for name in dict.fromkeys(names)])
        return asked, len(image or b"") + sum(len(value) for value in texts.values())

    @staticmethod
    def _with_columns(asked: RowInput, forms: list[Format]) -> RowInput:
        """The row's input where no needed column is empty; else with a text to copy, or a reason to skip it."""
        for form in forms:
            empty = [name for name in form.needed() if not one_line(asked.texts.get(name, ""))]
            if not empty:
                continue
            other = one_line(asked.texts.get(form.otherwise, "")) if form.otherwise else ""
            if other and form.otherwise not in empty:
                return replace(asked, copied=(form.otherwise, other))
            return replace(asked, reason=MISSING, detail=f"column {empty[0]}")
        return asked

    def answer(self, item: Item, caption: Caption) -> Row:
        raw = clean(caption.text)
        text = self._cleaned(raw)
        order = self._order(item, caption)
        if any(word.lower() in text.lower() for word in self.config.clean.leaks):
            return self.row(item, SKIPPED, LEAKED, **order, **self.values(replace(caption, text=raw)))
        try:
            parsed = self._parse(text)
        except Unparsed as error:
            return self.row(item, SKIPPED, UNPARSED, str(error), **order, **self.values(replace(caption, text=raw)))
        note = "; ".join(filter(None, (item.payload.note, caption.note)))
        return self.row(item, OK, note, **order, **self.values(replace(caption, text=text)), **parsed)

    def _order(self, item: Item, caption: Caption) -> dict[str, Any]:
        name = format_name(caption.format)
        shown = shuffled(self.asking.asks()[name], name, self.asking.seed, item.key)
        return {"order": shown} if shown else {}

    def alternative(self, caption: Caption) -> dict[str, Any]:
        text = self._cleaned(clean(caption.text))
        try:
            parsed = self._parse(text)
        except Unparsed:
            parsed = {}  # its fields are null
        return super().alternative(replace(caption, text=text)) | parsed

    def _cleaned(self, text: str) -> str:
        for beginning in self.config.clean.strip:
            if text.lower().startswith(beginning.lower()):
                text = text[len(beginning) :].lstrip()
                text = text[:1].upper() + text[1:]
        return text


def numbered(value: Said) -> Said:
    """A list's entries with numbers before them, without empty ones. A single text stays as it is.

    >>> numbered(("a cat", "", "a dog"))
    ('1. a cat', '2. a dog')
    """
    if isinstance(value, str):
        return value
    return tuple(f"{number}. {entry}" for number, entry in enumerate(filter(one_line, value), 1))


def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
