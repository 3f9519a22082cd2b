"""Reads the prompts of a sampling job, from a file or from a run's column, and cuts them into shards. Torch-free.

    prompts.txt       a prompt a line; its key is the line's number, 000001 on
    prompts.tsv       key, tab, prompt; a first line `key<TAB>prompt` is a header
    prompts.jsonl     {"key": "0001", "prompt": "a red car"} a line
    prompts.parquet   columns key and prompt

An entry that cannot be drawn (empty, unreadable) becomes a skipped row that says why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import ShardError, UserError
from hpc.base.fields import execution
from hpc.operator import OK, Shard
from hpc.run.published import Published

_ID = "prompts-"


@dataclass
class PromptsConfig:
    """Where the prompts are. Shards have a digest of their prompts, so that none of these keys enters the identity."""

    file: str = execution("", "list of prompts: .txt | .tsv | .jsonl | .parquet")
    run: str = execution("", "instead of a file: run directory whose column holds the prompts, e.g. captions")
    field: str = execution("", "what holds the prompt; default: caption for runs, prompt for .jsonl and .parquet")
    first: int = execution(0, "only so many prompts, from the list's begin; 0: all")
    shard: int = execution(1000, "prompts of a shard")

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.file, self.run = (os.path.abspath(path) if path else "" for path in (self.file, self.run))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One entry of a list. problem: why it cannot be drawn, "" if it can."""

    key: str
    text: str
    problem: str = ""


class Prompts:
    """A list of prompts, held in memory.

    Raises:
        UserError: there is no such list, it is empty, or two prompts have the same key.
    """

    def __init__(self, config: PromptsConfig) -> None:
        if bool(config.file) == bool(config.run):
            raise UserError("config: `prompts`: write one of prompts.file and prompts.run.")
        if config.shard < 1 or config.first < 0:
            raise UserError("config: `prompts`: `shard` is at least 1, `first` at least 0.")
        self._size = config.shard
        found = _of_run(config) if config.run else _of_file(config)
        self._prompts: list[Prompt] = []
        places: dict[str, str] = {}
        for place, prompt in itertools.islice(found, config.first or None):
            if prompt.key in places:
                raise UserError(
                    f"prompts: {config.run or config.file}: key {prompt.key!r} is in {places[prompt.key]} and again in "
                    f"{place}. Keys name images and seed their noise: make them unique."
                )
            places[prompt.key] = place
            self._prompts.append(_checked(prompt))
        if not self._prompts:
            raise UserError(f"prompts: {config.run or config.file} holds no prompt.")
        self._uri = config.run or config.file

    def __len__(self) -> int:
        return len(self._prompts)

    def shards(self, images: int) -> list[Shard]:
        """The list as shards of `prompts.shard` prompts. images: how many are drawn for each prompt."""
        return [
            Shard(
                id=f"{_ID}{number:06d}",
                uri=self._uri,
                bytes=sum(len(p.text.encode()) for p in part),
                etag=_digest(part),
                expected=len(part) * images,
            )
            for number, part in enumerate(self._parts())
        ]

    def of(self, shard: Shard) -> list[Prompt]:
        """The prompts of a shard. ShardError where the list has changed since it was planned."""
        number = int(shard.id.removeprefix(_ID))
        part = self._prompts[number * self._size : (number + 1) * self._size]
        if _digest(part) != shard.etag:
            raise ShardError("prompts: changed since the launch", shard.uri)
        return part

    def _parts(self) -> Iterator[list[Prompt]]:
        for start in range(0, len(self._prompts), self._size):
            yield self._prompts[start : start + self._size]


def _digest(part: list[Prompt]) -> str:
    text = "".join(f"{p.key}\0{p.text}\0{p.problem}\n" for p in part)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _checked(prompt: Prompt) -> Prompt:
    if not prompt.problem and not prompt.text.strip():
        return Prompt(prompt.key, "", "prompt: empty")
    return prompt


# --- where they come from -----------------------------------------------------------------------


def _of_file(config: PromptsConfig) -> Iterator[tuple[str, Prompt]]:
    """(place in words for messages, prompt) of each entry of a file."""
    path = Path(config.file)
    if not path.is_file():
        raise UserError(f"config: `prompts.file`: {path}: there is no such file.")
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"config: `prompts.file`: {path} is not a parquet file ({error}).") from error
        return ((f"row {n:,}", p) for n, p in enumerate(_rows(file, config.field or "prompt", str(path)), 1))
    lines = {".txt": _plain, ".tsv": _tabbed, ".jsonl": _json}.get(kind)
    if lines is None:
        raise UserError(f"config: `prompts.file`: {path} ends in none of .txt, .tsv, .jsonl and .parquet.")
    return _lines(path, lines, config.field or "prompt")


def _lines(path: Path, parse: Any, name: str) -> Iterator[tuple[str, Prompt]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError:
                prompt: Prompt | None = _unreadable(number, "not UTF-8")
            else:
                prompt = parse(number, text.removeprefix("\ufeff") if number == 1 else text, name)
            if prompt is not None:
                yield f"line {number:,}", prompt


def _unreadable(number: int, why: str) -> Prompt:
    return Prompt(f"line-{number:06d}", "", f"prompt: {why}")


def _plain(number: int, line: str, name: str) -> Prompt:
    return Prompt(f"{number:06d}", line)


def _tabbed(number: int, line: str, name: str) -> Prompt | None:
    key, tab, text = line.partition("\t")
    if number == 1 and (key, text) == ("key", "prompt"):
        return None
    return Prompt(key, text) if tab and key else _unreadable(number, "no key and tab before it")


def _json(number: int, line: str, name: str) -> Prompt:
    try:
        row = json.loads(line)
        key, text = row["key"], row[name]
        f"{key}{text}".encode()  # raises for half surrogate pairs, which JSON may contain
    except (ValueError, TypeError):
        return _unreadable(number, "not a JSON object")
    except KeyError:
        return _unreadable(number, f"no key, or no {name}")
    if not isinstance(key, (str, int)) or key == "":
        return _unreadable(number, "the key is not a text")
    return Prompt(str(key), text) if isinstance(text, str) else Prompt(str(key), "", "prompt: not a text")


def _rows(file: pq.ParquetFile, name: str, where: str) -> Iterator[Prompt]:
    """The rows of a parquet file. In a column file of this toolkit, rows without a value have a problem."""
    names = file.schema_arrow.names
    if missing := [wanted for wanted in ("key", name) if wanted not in names]:
        hint = ": set prompts.field" if missing[-1] == name else ""
        raise UserError(f"prompts: {where} has no field {missing[-1]!r}. It has {', '.join(names)}{hint}.")
    for batch in file.iter_batches(columns=["key", name, *({"status"} & set(names))]):
        for row in batch.to_pylist():
            key, text = str(row["key"]), row[name]
            if text is None or row.get("status", OK) != OK:
                yield Prompt(key, "", "prompt: missing")
            else:
                yield Prompt(key, text) if isinstance(text, str) else Prompt(key, "", "prompt: not a text")


def _of_run(config: PromptsConfig) -> Iterator[tuple[str, Prompt]]:
    published = Published(config.run)
    if missing := published.missing():
        raise UserError(
            f"prompts: {config.run}: {len(missing):,} of {len(published.shards):,} shards are not finished (first: "
            f"{missing[0]}). Launch it again to finish it."
        )
    for shard in published:
        with pq.ParquetFile(shard.file) as file:
            for prompt in _rows(file, config.field or "caption", f"{config.run}: shard {shard.shard.id}"):
                yield f"shard {shard.shard.id}", prompt
