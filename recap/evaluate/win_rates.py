"""Win rates of captioners in judged battles, and their strengths by the Bradley-Terry model, on Elo's scale.

A tie is half a win for each side (as in Chatbot Arena, arXiv 2403.04132). The likelihood is maximised by the MM
algorithm of Hunter (2004, Annals of Statistics 32, 384-406). Every pair that met gets one more tie, so that a captioner
that always wins has a finite strength. Intervals are bootstraps over images; all battles of an image are resampled
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recap.evaluate.intervals import Mean

RESAMPLES = 1000
MEAN_ELO, SCALE = 1000.0, 400.0
_STEPS, _CLOSE = 2000, 1e-7  # most iterations, and the change at which they end
_AT_ONCE = 100  # resamples that are computed together, so that they take only a few megabytes


@dataclass(frozen=True)
class Battle:
    """point: 1 where captioner `one` won, -1 where `other` did, 0 a tie."""

    image: str
    one: str
    other: str
    point: int


@dataclass(frozen=True)
class Pair:
    """How often `one` wins against `other`, ties counted as half."""

    one: str
    other: str
    rate: Mean
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class WinRates:
    """elo: by captioner, with a mean of 1000; 400 points are odds of ten to one. Empty where battles do not connect all
    captioners that have any.
    pairs: those that met. images: how many have a battle.
    """

    elo: dict[str, Mean]
    pairs: list[Pair]
    images: int


def compute(battles: Sequence[Battle], seed: int = 0) -> WinRates:
    """The win rates of at least one battle. A captioner without battles has no strength."""
    names = list(dict.fromkeys(name for battle in battles for name in (battle.one, battle.other)))
    images = {image: at for at, image in enumerate(dict.fromkeys(battle.image for battle in battles))}
    place = {name: at for at, name in enumerate(names)}
    wins = np.zeros((len(images), len(names), len(names)))
    counts = {(one, other): [0, 0, 0] for one in names for other in names}
    for battle in battles:
        at, one, other = images[battle.image], place[battle.one], place[battle.other]
        wins[at, one, other] += (1 + battle.point) / 2
        wins[at, other, one] += (1 - battle.point) / 2
        counts[battle.one, battle.other][battle.point] += 1
        counts[battle.other, battle.one][-battle.point] += 1
    whole = wins.sum(axis=0)
    drawn = _resampled(wins, seed)
    met = whole + whole.T > 0
    pairs = [
        _pair(names, counts, whole, drawn, one, other)
        for one in range(len(names)) for other in range(one + 1, len(names)) if met[one, other]
    ]  # fmt: skip
    elo = {}
    if _linked(met):
        ratings, spread = _elo(whole[None], met)[0], _elo(drawn, met)
        fought = [int((wins[:, at] + wins[:, :, at]).sum()) for at in range(len(names))]
        for name, at in place.items():
            low, high = np.percentile(spread[:, at], [2.5, 97.5])
            elo[name] = Mean(float(ratings[at]), float(low), float(high), fought[at])
    return WinRates(elo, pairs, len(images))


def _pair(
    names: list[str],
    counts: dict[tuple[str, str], list[int]],
    whole: np.ndarray,
    drawn: np.ndarray,
    one: int,
    other: int,
) -> Pair:
    ties, won, lost = counts[names[one], names[other]]
    share = _share(drawn[:, one, other], drawn[:, other, one])
    low, high = np.percentile(share[~np.isnan(share)], [2.5, 97.5])
    value = float(_share(whole[one, other], whole[other, one]))
    return Pair(names[one], names[other], Mean(value, float(low), float(high), won + lost + ties), won, lost, ties)


def _share(won: np.ndarray, lost: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return won / (won + lost)


def _resampled(wins: np.ndarray, seed: int) -> np.ndarray:
    """Sums of wins over resampled images, [resamples, captioners, captioners]. wins: [images, captioners,
    captioners]."""
    rng = np.random.default_rng(seed)
    images, flat = len(wins), wins.reshape(len(wins), -1)
    parts = [
        rng.multinomial(images, np.full(images, 1 / images), _AT_ONCE) @ flat for _ in range(RESAMPLES // _AT_ONCE)
    ]
    return np.concatenate(parts).reshape(-1, *wins.shape[1:])


def _linked(met: np.ndarray) -> bool:
    """Whether all captioners are connected by battles. met: bool [captioners, captioners]."""
    reached = {0}
    for _ in range(len(met)):
        reached |= {int(other) for one in reached for other in np.flatnonzero(met[one])}
    return len(reached) == len(met)


def _elo(wins: np.ndarray, met: np.ndarray) -> np.ndarray:
    """The Elo ratings of the captioners in each of N resamples, [N, captioners].

    Args:
        wins: [N, captioners, captioners]; [n, i, j] is how often i beat j.
    """
    wins = wins + 0.5 * met
    games, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    strength = np.ones(wins.shape[:2])
    for _ in range(_STEPS):
        new = won / (games / (strength[:, :, None] + strength[:, None, :])).sum(axis=2)
        new /= np.exp(np.log(new).mean(axis=1, keepdims=True))
        moved, strength = np.abs(np.log(new / strength)).max(), new
        if moved < _CLOSE:
            break
    return MEAN_ELO + SCALE * np.log10(strength)
