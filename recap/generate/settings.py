"""Config keys of a generating job. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from hpc.base.fields import semantic
from recap.data.rows import RowsConfig
from recap.engine import CaptionerConfig, Format, WriterConfig
from recap.engine.processor_files import settle


@dataclass
class ParseConfig:
    """How answers become fields: at most one of json, lines, brackets, verdict, rating, regex; none keeps the text."""

    json: dict[str, str] = semantic(
        {},
        "fields of a JSON object by name: string | int | float | bool | strings | any (its JSON); "
        "a type that ends with ? may be null or missing",
    )
    lines: bool = semantic(False, "field lines: the answer's lines without bullets or numbers")
    brackets: list[str] = semantic([], "fields of items written [a][b], a list each: [name, kind]")
    verdict: list[str] = semantic([], "field verdict: which of these words is said")
    rating: bool = semantic(False, "field rating: from 1 to 5, however the answer words it")
    regex: str = semantic("", "fields: the named groups of an expression that is searched for")
    types: dict[str, str] = semantic({}, "of regex's groups: string (where not named) | int | float")


@dataclass
class CleanConfig:
    """What is done to an answer before it is parsed."""

    strip: list[str] = semantic([], "beginnings that are taken off, such as This image displays:")
    leaks: list[str] = semantic([], "words of the prompt that no answer may hold; one that does is skipped")


@dataclass
class GenerateConfig:
    """Config keys of a generating job."""

    column: str = semantic("generated", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    writer: WriterConfig = field(default_factory=WriterConfig)
    formats: dict[str, Format] = semantic({}, "what the model is asked, by name: see configs/prompts")
    choose: str = semantic("one", "one: each row in one format, by weight and key | all: in every format")
    numbered: list[str] = semantic([], "columns of lists whose entries are shown behind their numbers, from 1")
    parse: ParseConfig = field(default_factory=ParseConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        settle(self.writer, any(form.image for form in self.formats.values()))
        for form in self.formats.values():
            if form.examples is not None and form.examples.file:
                form.examples.file = os.path.abspath(form.examples.file)

    def asking(self) -> CaptionerConfig:
        """The model's settings and the prompt formats, as engines take them."""
        settings = {item.name: getattr(self.writer, item.name) for item in fields(WriterConfig)}
        formats = "all" if self.choose == "all" else "choose"
        return CaptionerConfig(**settings, prompts=dict(self.formats), formats=formats)  # type: ignore[arg-type]
