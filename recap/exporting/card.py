"""The card of an export: README.md for people and for the Hub. Its YAML head tells `datasets.load_dataset(OUT)` where
the files are. Facts that are not known are called unknown.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpc.operator import OK
from hpc.run.published import Published
from recap.data.addresses import without_credentials
from recap.engine.settings import CaptionerConfig, is_execution
from recap.exporting.account import Account
from recap.exporting.licences import NOT_STATED, OPTIONS, Licence, front_matter
from recap.exporting.rows import COLUMNS, VERSION, Selection
from recap.exporting.statistics import draw_lengths, mean, quantile
from recap.model_files import model_folder, model_identity

NAME, PICTURE = "README.md", "lengths.png"
TARS, ENERGON, LANCE = "webdataset", "energon", "lance"
_OF_MEMBERS = (TARS, ENERGON)
_FILES = {TARS: "**/*.tar", ENERGON: "captions/**/*.tar", LANCE: "data/train.lance/**"}  # of others: data/*.parquet
_SIZES = ("", "1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # the Hub's size categories
_SAMPLED = ("temperature", "top_k", "top_p", "seed")  # settings that matter only where decoding is sample
_ALWAYS = ("prompt", "decoding", "max_tokens")  # settings that are shown even at their default
_LONGEST = 400  # characters of a text; longer ones are cut


@dataclass(frozen=True)
class CardFacts:
    """Facts that the rows do not hold: licences, the command as typed, and the cost that `hpc.status` shows."""

    captions: Licence | None = None
    images: Licence | None = None
    command: Sequence[str] = ()
    effort: dict[str, Any] | None = None


def write_card(
    folder: Path, source: Published, account: Account, selection: Selection, kind: str, facts: CardFacts = CardFacts()
) -> None:
    """Write README.md and its picture into a folder. kind: parquet, jsonl, lance, webdataset or energon."""
    draw_lengths(account.statistics, folder / PICTURE)
    (folder / NAME).write_text(_card(source, account, selection, kind, facts), encoding="utf-8")


def _card(source: Published, account: Account, selection: Selection, kind: str, facts: CardFacts) -> str:
    parts = [
        _head(source, account, kind, facts),
        f"# {_text(source.run.name)}: {account.rows:,} captions",
        "## Licences\n\n" + "\n".join(_licences(facts)),
        "## Source\n\n" + "\n".join(_source(source, account)),
        "## How the captions were made\n\n" + "\n".join(_making(source, account, selection, facts)),
        f"## Members\n\nThe members of the tars, and beside them `{source.column}.txt`, the caption."
        if kind in _OF_MEMBERS
        else _table("## Columns", ("column", "type", "meaning"), _columns(selection)),
        _table("## Outcomes\n\nSamples without a caption are left out.", ("reason", "samples"), _outcomes(account)),
        "## Lengths\n\n" + _lengths(account),
        _table(f"## {len(account.statistics.pairs)} samples", ("key", "original text", "caption"), _pairs(account)),
        "## Known limits\n\n" + "\n".join(_limits(account, selection, kind)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(source: Published, account: Account, kind: str, facts: CardFacts) -> str:
    head: dict[str, Any] = {"pretty_name": source.run.name}
    head |= front_matter(facts.captions, facts.images) if kind == TARS else front_matter(facts.captions)
    head |= {"annotations_creators": ["machine-generated"], "task_categories": ["image-to-text", "text-to-image"]}
    place = max(len(str(account.rows)) - 3, 0)
    before, after = (_SIZES[at] if at < len(_SIZES) else "" for at in (place, place + 1))
    head["size_categories"] = [f"{before}<n<{after}" if before and after else f"n<{after}" if after else f"n>{before}"]
    head["configs"] = [{"config_name": "default", "data_files": _FILES.get(kind, f"data/*.{kind}")}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _licences(facts: CardFacts) -> Iterable[str]:
    for what, stated, option in zip(("captions", "images"), (facts.captions, facts.images), OPTIONS, strict=True):
        yield f"- {what}: {_text(stated.words) if stated else f'{NOT_STATED} ({option})'}"


def _source(source: Published, account: Account) -> Iterable[str]:
    data: dict[str, Any] = source.submission.config.get("data", {})
    yield f"- tars: {_text(', '.join(without_credentials(str(place)) for place in data.get('shards', [])))}"
    yield f"- {len(source.shards):,} tars, {sum(shard.bytes for shard in source.shards):,} bytes"
    if missing := source.missing():
        yield f"- {len(missing):,} of these tars are not finished and left out"
    yield from account.downloads.lines()


def _making(source: Published, account: Account, selection: Selection, facts: CardFacts) -> Iterable[str]:
    yield from (f"- written by: {_text(words)}" for words in account.by)
    yield from _asked(source.submission.config)
    code = f"toolkit {source.submission.toolkit or 'unknown'}, code `{source.submission.code}`"
    yield f"- schema version {VERSION}, identity `{source.identity}`, column `{source.column}`, {code}"
    if selection.where:
        yield f"- rows that are kept: {_text(json.dumps(selection.where.text, ensure_ascii=False))}"
    if selection.keep:
        yield f"- of the selection: {_text(selection.keep.run)}"
    yield f"- effort: {_effort(facts.effort)}"
    if facts.command:
        yield f"- this export: {_code(shlex.join(map(without_credentials, facts.command)))}"


def _asked(config: dict[str, Any]) -> Iterable[str]:
    """The model's files and the settings that decide its output: a captioning job's `captioner`, or a generating job's
    `writer` and `formats`."""
    settings: dict[str, Any] = config.get("captioner") or config.get("writer") or {}
    settings = {**settings, "formats": config.get("formats")} if "writer" in config else settings
    if settings.get("model") and settings.get("backend") != "openai":
        yield f"- its files: {_model(str(settings['model']))}"
    default = CaptionerConfig()
    for key, value in settings.items():
        known = hasattr(default, key) and not is_execution(CaptionerConfig, key)
        unused = (key in _SAMPLED and settings.get("decoding") != "sample") or (
            key == "prompt" and settings.get("prompts")
        )
        if value in (None, {}, "") or unused or (key == "server" and not value.get("command")):
            continue
        if key in _ALWAYS or isinstance(value, dict) or (known and value != getattr(default, key)):
            yield f"- {key}: {_text(json.dumps(value, ensure_ascii=False))}"


def _effort(effort: dict[str, Any] | None) -> str:
    if not effort:
        return "unknown"
    cost = f", {effort['currency']}{effort['cost']:,.2f}" if effort.get("cost") is not None else ""
    return f"{effort['hours']:,.3f} {effort['unit']} hours{cost}"


def _model(model: str) -> str:
    """A model's revision, where its folder is a snapshot of the Hub, and the digests of its files."""
    try:
        folder, digests = model_folder(model), model_identity(model)
    except OSError:
        return "not at hand when this was exported"
    revision = f"revision `{folder.name}`, " if folder.parent.name == "snapshots" else ""
    return revision + ", ".join(f"{_text(name)} sha256 `{digest}`" for name, digest in digests.items())


def _columns(selection: Selection) -> Iterable[tuple[str, ...]]:
    about = {name: words for name, _, words in COLUMNS}
    for field in selection.schema:
        yield _text(field.name), _text(field.type), about.get(field.name, "a field of the run")


def _outcomes(account: Account) -> Iterable[tuple[str, ...]]:
    """(status or reason, number of samples): each status, followed by its reasons."""
    for status, count in account.outcomes.most_common():
        yield _text(status), f"{count:,}"
        reasons = [found for found in account.reasons.most_common() if found[0].startswith(f"{status}: ")]
        yield from ((_text(reason), f"{number:,}") for reason, number in reasons)
    if account.outcomes[OK] > account.rows:
        yield "with a caption, left out of this export", f"{account.outcomes[OK] - account.rows:,}"


def _lengths(account: Account) -> str:
    labels = {"org_length": "words of the original", "re_length": "words of the caption", "tokens": "tokens"}
    lines = []
    for name, counts in account.statistics.counts.items():
        if counts:
            found = [f"{quantile(counts, share):,}" for share in (0.05, 0.5, 0.95, 1.0)]
            lines.append((labels[name], f"{counts.total():,}", f"{mean(counts):,.1f}", *found))
    picture = f"![Words of original texts and of captions]({PICTURE})"
    return _table(picture, ("length", "texts", "mean", "5 %", "median", "95 %", "longest"), lines)


def _pairs(account: Account) -> Iterable[tuple[str, ...]]:
    for _, key, original, caption in account.statistics.pairs:
        yield _text(key), "*no text*" if original is None else _shortened(original), _shortened(caption)


def _limits(account: Account, selection: Selection, kind: str) -> Iterable[str]:
    yield "- Captions are machine-made: they may name what is not in the image, and carry the biases of their model."
    if kind != TARS:
        yield (
            "- Images are not part of this data set. Those behind the addresses may be gone or changed: compare "
            "`image_sha256` where it is given."
        )
    counts, each = account.statistics, 100 / max(1, account.rows)
    cut = counts.finish["length"]
    if cut:
        yield f"- the token limit ended {cut:,} captions ({cut * each:.2f} %)"
    for name, count in counts.lint.most_common():
        yield f"- lint notes “{_text(name)}” in {count:,} captions ({count * each:.2f} %)"
    if kind not in _OF_MEMBERS and (empty := [name for name in selection.schema.names if name not in account.filled]):
        yield f"- null in all rows: {_text(', '.join(empty))}"


def _table(above: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"{above}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _shortened(text: str) -> str:
    return _text(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …")


_MARKS = re.compile(r"[\\`*\[\]|~$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.", re.IGNORECASE)


def _text(text: object) -> str:
    """Text escaped for Markdown: nothing in it becomes markup or a link, or ends a table's cell."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return _MARKS.sub(r"\\\g<0>", html.escape(shown, quote=False).replace("&gt;", ">"))


def _code(text: str) -> str:
    """Text as inline code, whatever backticks are in it."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{''.join(c if c.isprintable() else ' ' for c in text)}{pad}{fence}"
