"""The scorers that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc.base.errors import UserError
from recap.score.clip import ClipScorer
from recap.score.image_facts import FactsScorer
from recap.score.language import LanguageScorer
from recap.score.scorer import REFERENCES, TEXTS, Scorer
from recap.score.settings import ScoreConfig
from recap.score.surface import SurfaceScorer

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

RESERVED = frozenset({"key", "status", "reason", "detail", "image_sha256"})


def scorers_of(config: ScoreConfig) -> list[Scorer]:
    """In the order of their fields. UserError where there are none, or one needs what the rows lack."""
    given = config.scorers
    encoders: dict[tuple[str, str], ClipEncoder] = {}
    found: list[Scorer] = [ClipScorer(name, one, config.texts, encoders) for name, one in given.clip.items()]
    if given.surface is not None:
        found.append(SurfaceScorer(given.surface, config.texts))
    if given.language is not None:
        found.append(LanguageScorer(given.language, config.texts))
    if given.facts is not None:
        found.append(FactsScorer())
    _check(config, found)
    return found


def _check(config: ScoreConfig, found: list[Scorer]) -> None:
    if not found:
        raise UserError("config: `scorers`: there are none. Write scorers.surface={} or another: see configs/score.")
    for key, names, needed in (("texts", config.texts, TEXTS), ("references", config.references, REFERENCES)):
        wanted = any(needed in scorer.needs for scorer in found)
        if wanted and not names:
            raise UserError(f"config: `{key}`: empty, and a scorer needs it. Name columns of data.columns.")
        if names and not wanted:
            raise UserError(f"config: `{key}`: {names[0]}: no scorer looks at {key}. Leave it out, or add one.")
        for name in names:
            if name not in config.data.columns:
                known = ", ".join(config.data.columns) or "there are none"
                raise UserError(f"config: `{key}`: {name!r} is not among data.columns ({known}). Describe it there.")
    taken: set[str] = set(RESERVED)
    for name, _ in (field for scorer in found for field in scorer.fields):
        if name in taken:
            raise UserError(
                f"config: `scorers`: two fields would be called {name!r}. Give a text or a scorer another name."
            )
        taken.add(name)
