"""The scorers that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc.base.errors import UserError
from recap.score.bert_score import BertScorer
from recap.score.clip import ClipScorer
from recap.score.entailment import EntailmentScorer
from recap.score.features import FeaturesScorer
from recap.score.head import HeadScorer
from recap.score.image_facts import FactsScorer
from recap.score.language import LanguageScorer
from recap.score.log_probability import LogProbabilityScorer
from recap.score.matching import MatchingScorer
from recap.score.nudity import NudityScorer
from recap.score.reward import RewardScorer
from recap.score.scorer import BAG, REFERENCES, TEXTS, TEXTS_IF_ANY, Scorer
from recap.score.self_retrieval import LARGEST_BAG, SelfRetrievalScorer
from recap.score.settings import ScoreConfig
from recap.score.similarity import SimilarityScorer
from recap.score.surface import SurfaceScorer
from recap.score.verdict import VerdictScorer

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

RESERVED = frozenset({"key", "status", "reason", "detail", "image_sha256"})


def scorers_of(config: ScoreConfig) -> list[Scorer]:
    """The scorers, in the order in which their fields stand in the column.

    Raises:
        UserError: the config names none, one needs what the rows lack, or two fields have the same name.
    """
    given, texts = config.scorers, config.texts
    encoders: dict[tuple[str, str], ClipEncoder] = {}
    found: list[Scorer] = [ClipScorer(name, one, texts, encoders) for name, one in given.clip.items()]
    if given.surface is not None:
        found.append(SurfaceScorer(given.surface, texts))
    if given.language is not None:
        found.append(LanguageScorer(given.language, texts))
    if given.facts is not None:
        found.append(FactsScorer())
    if given.nudity is not None:
        found.append(NudityScorer(given.nudity))
    found += [FeaturesScorer(name, one, texts, encoders) for name, one in given.features.items()]
    found += [SelfRetrievalScorer(name, one, texts, encoders) for name, one in given.self_retrieval.items()]
    found += [HeadScorer(name, one, encoders) for name, one in given.head.items()]
    found += [MatchingScorer(name, one, texts) for name, one in given.itm.items()]
    found += [LogProbabilityScorer(name, one, texts) for name, one in given.logprob.items()]
    found += [SimilarityScorer(name, one, texts) for name, one in given.similarity.items()]
    found += [BertScorer(name, one, texts) for name, one in given.bert_score.items()]
    found += [EntailmentScorer(name, one, texts) for name, one in given.nli.items()]
    found += [RewardScorer(name, one, texts) for name, one in given.reward.items()]
    found += [VerdictScorer(name, one) for name, one in given.verdict.items()]
    _check(config, found)
    return found


def columns_beside(config: ScoreConfig) -> list[str]:
    """Names of the columns that are read besides texts and references: of bags and of verdicts."""
    bag = [config.bag.column] if config.bag and config.bag.column else []
    return [*bag, *(verdict.column for verdict in config.scorers.verdict.values())]


def _check(config: ScoreConfig, found: list[Scorer]) -> None:
    if not found:
        raise UserError("config: `scorers`: there are none. Write scorers.surface={} or another: see configs/score.")
    for key, names, needed in (("texts", config.texts, TEXTS), ("references", config.references, REFERENCES)):
        wanted = any(needed in scorer.needs for scorer in found)
        if wanted and not names:
            raise UserError(f"config: `{key}`: empty, and a scorer needs it. Name columns of data.columns.")
        if names and not wanted and not (needed == TEXTS and any(TEXTS_IF_ANY in scorer.needs for scorer in found)):
            raise UserError(f"config: `{key}`: {names[0]}: no scorer looks at {key}. Leave it out, or add one.")
        for name in names:
            _check_column(config, key, name)
    for name, verdict in config.scorers.verdict.items():
        _check_column(config, f"scorers.verdict.{name}.column", verdict.column)
    _check_bag(config, any(BAG in scorer.needs for scorer in found))
    taken: set[str] = set(RESERVED)
    for name, _ in (field for scorer in found for field in scorer.fields):
        if name in taken:
            raise UserError(
                f"config: `scorers`: two fields would be called {name!r}. Give a text or a scorer another name."
            )
        taken.add(name)


def _check_column(config: ScoreConfig, key: str, name: str) -> None:
    if name not in config.data.columns:
        known = ", ".join(config.data.columns) or "there are none"
        raise UserError(f"config: `{key}`: {name!r} is not among data.columns ({known}). Describe it there.")


def _check_bag(config: ScoreConfig, wanted: bool) -> None:
    bag = config.bag
    if wanted and bag is None:
        raise UserError("config: `bag`: empty, and scorers.self_retrieval needs it. Write bag.rows=5 or bag.column.")
    if bag is None:
        return
    if not wanted:
        raise UserError("config: `bag`: no scorer looks at bags. Leave it out, or add scorers.self_retrieval.")
    if bool(bag.rows) == bool(bag.column):
        raise UserError("config: `bag`: write rows or column: one of both.")
    if bag.rows and not 2 <= bag.rows <= LARGEST_BAG:
        raise UserError(f"config: `bag.rows`: {bag.rows}: a bag has 2 to {LARGEST_BAG} images.")
    if bag.column:
        _check_column(config, "bag.column", bag.column)
