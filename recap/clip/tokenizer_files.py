"""Checks, by a tokenizer's small files, that it fits the text tower. Torch-free."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.base.errors import UserError
from recap.text_policy import TextPolicy

if TYPE_CHECKING:
    from recap.clip.settings import ClipConfig

_OF_CLASSES = {  # default special tokens of tokenizer classes, whose files need not name them
    "CLIPTokenizer": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"},
    "BertTokenizer": {"cls_token": "[CLS]", "pad_token": "[PAD]"},
}

OLD_RULE = 2
"""Where a text tower's config has this id as its end token, transformers pools at the highest token id instead. The
rule is for OpenAI's weights, whose first configs had a wrong end token."""


def check_tokenizer(config: ClipConfig) -> None:
    """UserError where the tokenizer on disk does not fit the text tower, or lacks a source's prefix."""
    from tokenizers import Tokenizer

    folder, hf = Path(config.model.tokenizer), config.model.architecture == "hf"
    if not (folder / "tokenizer.json").is_file():
        return  # some folders have only merges and a vocabulary; loading them reports what is wrong
    try:
        found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise UserError(f"config: `model.tokenizer`: {folder}/tokenizer.json cannot be read: {error}") from error
    if found.get_vocab_size() > config.model.vocabulary:
        raise UserError(
            f"config: `model.vocabulary`: the tokenizer {folder} has {found.get_vocab_size():,} tokens, the text tower "
            f"{config.model.vocabulary:,} rows. Write at least {found.get_vocab_size()}."
        )
    names, sure = special_tokens(folder)
    for kind in ("bos_token", "eos_token") if hf else ("cls_token",):
        if kind not in names and sure:
            raise UserError(lacks(folder, kind))
    if hf and "eos_token" in names:
        check_end(folder, found.token_to_id(names["eos_token"]))
    for column, token in config.text.prefix.items():
        if found.token_to_id(token) is None:
            raise UserError(
                f"config: `text.prefix.{column}`: the tokenizer {folder} has no token {token!r}. Add it there, or name "
                "another."
            )


def make_of_texts(config: ClipConfig) -> str:
    """The command that would make the missing tokenizer of a training, from the texts that the training reads."""
    model = config.model
    words = ["python", "-m", "recap.clip.make_tokenizer", model.tokenizer or "words"]
    words += [
        "--architecture",
        model.architecture,
        "--vocabulary",
        str(model.vocabulary),
        "--shards",
        *config.data.shards,
    ]
    found = (config.data.columns[name] for name in TextPolicy(config.text).columns if name in config.data.columns)
    if column := next(found, None):
        places = {"member": column.member, "run": column.run, "column": column.folder, "field": column.field}
        words += [word for option, value in places.items() if value for word in (f"--{option}", value)]
    words += [word for token in config.text.prefix.values() for word in ("--token", token)]
    return shlex.join(words)


def lacks(folder: str | Path, kind: str) -> str:
    """The message for a tokenizer that lacks a special token. kind: the token's key in tokenizer_config.json."""
    name = kind.removesuffix("_token").upper()
    use = "pools its features at" if kind == "eos_token" else "begins texts with"
    architecture = "recap" if kind == "cls_token" else "hf"
    return (
        f"config: `model.tokenizer`: {folder} has no {name} token, which model.architecture={architecture} {use}. Name "
        "a tokenizer that has one, or make one of your texts: python -m recap.clip.make_tokenizer."
    )


def check_end(folder: str | Path, end: int | None) -> None:
    """UserError where transformers would not pool at this end token (see OLD_RULE)."""
    if end == OLD_RULE:
        raise UserError(
            f"config: `model.tokenizer`: the end token of {folder} has the id {OLD_RULE}. With that id transformers' "
            "CLIPModel pools at the highest token id of a text, not at its end: features would be of one word alone. "
            "Name a tokenizer whose end token has another id (python -m recap.clip.make_tokenizer makes one of your "
            "texts), or write model.architecture=recap, which needs a CLS token instead."
        )


def check_pooling(folder: str | Path, named: int | None, tokenizer: Any) -> None:
    """UserError where a CLIPModel of transformers does not pool at its tokenizer's end token.

    Args:
        named: the id of the end token in the text tower's config.
    """
    end = tokenizer.eos_token_id
    if named == OLD_RULE:
        if end is None or end < tokenizer.vocab_size - 1:
            raise UserError(
                f"clip: {folder}: its config.json names {OLD_RULE} as the end token, with which transformers pools at "
                f"the highest token id, and its tokenizer's end token ({end}) is not the highest: features are not of "
                "whole texts. Write text_config.eos_token_id as the tokenizer has it, if it was trained so."
            )
    elif named != end:
        raise UserError(
            f"clip: {folder}: its config.json pools texts at the token {named}, its tokenizer ends them with {end}. "
            "Correct text_config.eos_token_id, or the tokenizer."
        )


def special_tokens(folder: Path) -> tuple[dict[str, str], bool]:
    """(special tokens by key: bos_token, eos_token, ..., whether this list is complete) of a tokenizer's folder."""
    files = [_json(folder / name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
    kind = str(files[1].get("tokenizer_class", "")).removesuffix("Fast")
    found = dict(_OF_CLASSES.get(kind, {}))
    for file in files:
        for name, token in file.items():
            content = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(content, str):
                found[name] = content
    return found, kind in ("PreTrainedTokenizer", "TokenizersBackend", *_OF_CLASSES)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
