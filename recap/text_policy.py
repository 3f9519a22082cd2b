"""From columns to training text: one object, its config plain data, used unchanged by CLIP, DiT and SFT trainers.

    policy = TextPolicy(TextPolicyConfig(weights={"org_caption": 0.8, "re_caption": 0.2}))
    row = {"org_caption": "CLR", "re_caption": "A red car. It is old."}
    texts = policy.draw(row, seed=0, epoch=3, key="00017/000170042")

Every draw is a hash of (seed, epoch, key): it is the same after a resume, on any number of ranks, in a test and on
paper. The paper's p is the weight of the *original* caption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc.base.errors import UserError
from recap.randomness import draw

JOIN = "+"
"""`org_caption+re_caption` as a weight's name is the two texts, joined by `separator`."""


@dataclass
class SubCaptions:
    """Sentences of a text as texts of their own (DreamLIP, CLIPS)."""

    columns: list[str] = field(default_factory=list)  # of which texts; the others are used whole
    count: int = 1  # sentences of a sub-caption, consecutive
    pick: str = "random"  # first | random
    keep_whole: float = 0.0  # share of draws in which the text is used whole all the same


@dataclass
class Block:
    """A text of more than so many tokens is cut to a run of them (CLIPA)."""

    tokens: int = 0  # 0: not cut here; the tokenizer's limit cuts the end off
    pick: str = "random"  # first | last | random


@dataclass
class TextPolicyConfig:
    """Which text a sample is trained with."""

    weights: dict[str, float] = field(default_factory=dict)  # column -> share; org_caption: the paper's p
    separator: str = ", "  # between joined columns
    texts: int = 1  # per image; with more, the first is drawn by the weights, the others are sub-captions
    sub_captions: SubCaptions = field(default_factory=SubCaptions)
    block: Block = field(default_factory=Block)
    prefix: dict[str, str] = field(default_factory=dict)  # column -> token put before its texts
    min_words: int = 1  # a text of fewer counts as empty
    fallback: list[str] = field(default_factory=list)  # instead of an empty text, in this order; default: by weight


@dataclass(frozen=True, slots=True)
class Drawn:
    """One text. column: where it comes from; wanted: what the weights had drawn (another one if that was empty)."""

    text: str
    column: str
    wanted: str


class TextPolicy:
    """Chooses each sample's text: the rules are in this module's docstring.

    Raises:
        UserError: the config is wrong.
    """

    def __init__(self, config: TextPolicyConfig) -> None:
        self.config = config
        _check(config)
        total = sum(config.weights.values())
        self._shares = [(name, weight / total) for name, weight in sorted(config.weights.items())]
        by_weight = sorted(config.weights, key=lambda name: (-config.weights[name], name))
        self._fallback = config.fallback or [name for name in by_weight if config.weights[name] > 0]

    @property
    def columns(self) -> list[str]:
        """The columns that must be read."""
        named = [*(n for n, share in self._shares if share > 0), *self._fallback, *self.config.sub_captions.columns]
        return list(dict.fromkeys(part for name in named for part in name.split(JOIN)))

    @property
    def sources(self) -> list[str]:
        """What a text may come from (`Drawn.column`), joined columns as one."""
        return list(dict.fromkeys([*(name for name, share in self._shares if share > 0), *self._fallback]))

    def draw(self, row: Mapping[str, Any], seed: int, epoch: int, key: str) -> list[Drawn]:
        """`config.texts` texts for one sample; [] where every column is empty.

        Args:
            row: column values, None or missing where there is none.
            key: unique in the corpus.
        """
        wanted = self._choose(_share(seed, epoch, key, "column"))
        order = [wanted, *(name for name in self._fallback if name != wanted)]
        found = next(((name, text) for name in order if (text := self._text(row, name))), None)
        if found is None:
            return []
        column, text = found
        whole = self.config.texts > 1 or self._kept_whole(column, seed, epoch, key)
        drawn = [Drawn(text if whole else self._part(text, seed, epoch, key, 0), column, wanted)]
        return drawn + self._more(row, drawn[0], seed, epoch, key)

    def cut(self, ids: Sequence[int], seed: int, epoch: int, key: str) -> Sequence[int]:
        """A run of `block.tokens` of a text's token ids (without special tokens)."""
        block = self.config.block
        spare = len(ids) - block.tokens
        if not block.tokens or spare <= 0:
            return ids
        start = {"first": 0, "last": spare}.get(block.pick, draw(seed, epoch, key, "block") % (spare + 1))
        return ids[start : start + block.tokens]

    def prefix(self, column: str) -> str | None:
        """The token that tells where a text comes from."""
        return self.config.prefix.get(column)

    # --- parts ------------------------------------------------------------------------------------

    def _choose(self, share: float) -> str:
        for name, weight in self._shares:
            if share < weight:
                return name
            share -= weight
        return max(self._shares, key=lambda s: s[1])[0]  # rounding

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        """The text of a column, or of joined ones; "" where it is empty or too short."""
        parts = [" ".join(str(row.get(part) or "").split()) for part in name.split(JOIN)]
        text = self.config.separator.join(part for part in parts if part)
        return text if len(text.split()) >= max(self.config.min_words, 1) else ""

    def _kept_whole(self, column: str, seed: int, epoch: int, key: str) -> bool:
        sub = self.config.sub_captions
        return column not in sub.columns or _share(seed, epoch, key, "whole") < sub.keep_whole

    def _part(self, text: str, seed: int, epoch: int, key: str, number: int) -> str:
        sub = self.config.sub_captions
        parts = sentences(text)
        starts = max(len(parts) - sub.count + 1, 1)
        start = 0 if sub.pick == "first" else draw(seed, epoch, key, "part", number) % starts
        return " ".join(parts[start : start + sub.count])

    def _more(self, row: Mapping[str, Any], first: Drawn, seed: int, epoch: int, key: str) -> list[Drawn]:
        """The further texts: sub-captions of all named columns, without repetition as far as they reach."""
        wanted, sub = self.config.texts - 1, self.config.sub_captions
        if not wanted:
            return []
        pool = [
            (" ".join(parts[i : i + sub.count]), name)
            for name in sub.columns or [first.column]
            if (parts := sentences(self._text(row, name)))
            for i in range(max(len(parts) - sub.count + 1, 1))
        ] or [(first.text, first.column)]
        if sub.pick == "random":  # a shuffle by hash: the last sub-caption is as likely as the first
            order = sorted(range(len(pool)), key=lambda i: draw(seed, epoch, key, "more", i))
            pool = [pool[i] for i in order]
        return [Drawn(*pool[i % len(pool)], pool[i % len(pool)][1]) for i in range(wanted)]


# --- sentences ------------------------------------------------------------------------------------

_ABBREVIATIONS = frozenset(
    """
    dr mr mrs ms prof st jr sr vs etc e.g i.e no vol fig approx inc ltd co corp dept est capt col gen lt sgt rev hon mt
    ca ft in oz lb sq u.s u.k a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec
    """.split()  # noqa: SIM905 - a list is harder to read
)
_OFTEN_LAST = frozenset("in oz lb ft sq no am ca co col mar etc inc ltd corp p.m a.m".split())  # noqa: SIM905
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+")


def sentences(text: str) -> list[str]:
    """The sentences of a text. "3.5", "Dr. Who", "U.S. flag", "J. R. Smith" and a list's "1. First" stay whole.

    >>> sentences('Dr. Who sells a 3.5 inch disk. "Cheap!" he says. Buy it')
    ['Dr. Who sells a 3.5 inch disk.', '"Cheap!"', 'he says.', 'Buy it']
    """
    found, start = [], 0
    for match in _END.finditer(text):
        if match[0] == "." and _abbreviates(text[start : match.start()], text[match.end() :]):
            continue
        if part := text[start : match.end()].strip():
            found.append(part)
        start = match.end()
    if rest := text[start:].strip():
        found.append(rest)
    return found


def _abbreviates(before: str, after: str) -> bool:
    """Whether a single full stop ends an abbreviation, and not the sentence."""
    if not after.strip():
        return False
    word = before.rsplit(None, 1)[-1].lstrip("(\"'") if before.strip() else ""
    following = after.lstrip()[:1]
    if re.fullmatch(r"(?:[A-Z]\.)*[A-Z]", word):  # initials; "Plan B. It" is a loss we take
        return True
    if word == before.strip() and word.isdecimal():  # the number of a list's entry
        return True
    if "." in word and word.replace(".", "").isalpha() and following.islower():  # "a Ph.D. student"
        return True
    known = word.lower() in _ABBREVIATIONS
    if known and word.lower() in _OFTEN_LAST:  # also ordinary words, or often last: the next letter decides
        return following.islower() or following.isdigit()
    return known


def _share(*parts: int | str) -> float:
    """A number in [0, 1) from the parts alone."""
    return draw(*parts) / 2**64


def _check(config: TextPolicyConfig) -> None:
    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: `text.{key}`: {why}")

    if not config.weights or any(w < 0 for w in config.weights.values()) or sum(config.weights.values()) <= 0:
        refuse(
            "weights", f"{config.weights}: write a weight for each column, e.g. {{org_caption: 0.8, re_caption: 0.2}}"
        )
    if config.texts < 1:
        refuse("texts", f"{config.texts} is less than 1")
    if config.sub_captions.pick not in ("first", "random"):
        refuse("sub_captions.pick", f"{config.sub_captions.pick!r} is unknown. Write first or random")
    if config.sub_captions.count < 1 or not 0 <= config.sub_captions.keep_whole <= 1:
        refuse("sub_captions", "count is at least 1, keep_whole a share between 0 and 1")
    if config.block.pick not in ("first", "last", "random") or config.block.tokens < 0:
        refuse("block", "pick is first, last or random, tokens not negative")
    for name in config.fallback:
        if not name.strip(JOIN):
            refuse("fallback", "holds an empty name")
    texts = {*config.weights, *config.fallback, *config.sub_captions.columns}
    for name in config.prefix:
        if name not in texts:
            refuse("prefix", f"no text comes from {name!r}. There are {', '.join(sorted(texts))}")
