"""The suite's metrics of judges' answers: their command line arguments, and the runs that they read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.evaluate import (
    battles,
    capture,
    claims,
    crosscheck,
    dcscore,
    hallucinated,
    judged,
    rating,
    text_sets,
    vdcscore,
)
from recap.evaluate.intervals import bootstrap_mean_of_means
from recap.evaluate.phrases import Likeness
from recap.evaluate.wordnet import WordNet

Found = dict[str, Any]
Measure = Callable[[argparse.Namespace], Found]


def _rating(args: argparse.Namespace) -> Found:
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {}
    for name, run in _named(args.runs).items():
        answers = judged.read(run, rating.FIELDS)
        found = rating.compute({sample: row["rating"] for sample, row in answers.of_rows().items()})
        metrics[name] = found.mean
        account[name] = answers.account | {f"rated_{given}": count for given, count in found.counts.items()}
    return {"metrics": metrics, "account": account}


def _caparena(args: argparse.Namespace) -> Found:
    """The score against each opponent, and their mean, which the paper's table reports."""
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {}
    for name, run in _named(args.runs).items():
        answers = judged.read(run, battles.FIELDS)
        found = battles.compute(answers, args.of)
        metrics[name] = found.score
        account[name] = answers.account | {
            "wins": found.wins, "losses": found.losses, "ties": found.ties, "first_won": found.first
        }  # fmt: skip
    if len(metrics) > 1:
        metrics["mean"] = bootstrap_mean_of_means([score.each for score in metrics.values()])
    return {"metrics": metrics, "account": account}


def _claims(args: argparse.Namespace) -> Found:
    facts = judged.read(args.facts, claims.FACTS)
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {"facts": facts.account}
    for name, run in _named(args.runs).items():
        verified = judged.read(run, claims.VERDICTS)
        found = claims.compute(facts, verified)
        metrics |= {"claimed": found.claimed, f"supported {name}": found.supported, f"risk {name}": found.risk}
        account[name] = verified.account | {"unsure": found.unsure}
    if args.captions:
        texts = text_sets.read(args.captions, text_sets.CAPTIONS).texts
        metrics["opener"] = claims.opener_rate({sample: said[0] for sample, said in texts.items()})
    return {"metrics": metrics, "account": account}


def _dcscore(args: argparse.Namespace) -> Found:
    runs = {
        "facts": judged.read(args.facts, dcscore.FACTS),
        "verified": judged.read(args.verified, dcscore.VERIFIED),
        "matched": judged.read(args.matched, dcscore.MATCHED),
    }
    fields = [args.reference_field] if args.reference_field else ["facts", "lines", *text_sets.REFERENCES]
    found = dcscore.compute(**runs, references=text_sets.read(args.references, fields))
    names = ("precision", "recall", "f1", "f1_describing")
    metrics = {"DCScore": found.score} | {name.replace("_", " "): getattr(found, name) for name in names}
    counts = {name: getattr(found, name) for name in ("trials", "unknown", "bare", "lost", "missing")}
    return {"metrics": metrics, "account": {"captions": counts} | {name: run.account for name, run in runs.items()}}


def _openchair(args: argparse.Namespace) -> Found:
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {}
    for name, run in _named(args.runs).items():
        answers = judged.read(run, hallucinated.FIELDS)
        found = hallucinated.compute(answers)
        metrics[name] = found.rate
        counts = {key: getattr(found, key) for key in ("yes", "no", "unsure", "captions")}
        account[name] = answers.account | counts
    return {"metrics": metrics, "account": account}


def _vdcscore(args: argparse.Namespace) -> Found:
    """Accuracy and score of each aspect, and their means."""
    if len(args.answered) != len(args.graded):
        raise UserError("evaluate: vdcscore: give --answered and --graded once an aspect each, in the same order.")
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {}
    aspects = []
    for (name, run), graded_run in zip(_named(args.answered).items(), args.graded, strict=True):
        answered, graded = judged.read(run, vdcscore.ANSWERED), judged.read(graded_run, vdcscore.GRADED)
        found = vdcscore.compute(answered, graded)
        aspects.append(found)
        metrics |= {f"{name} accuracy": found.accuracy, f"{name} score": found.score}
        account[f"{name} answered"] = answered.account
        account[f"{name} graded"] = graded.account | {"questions": found.questions}
    if len(aspects) > 1:
        metrics["accuracy"] = bootstrap_mean_of_means([found.accuracy.each for found in aspects])
        metrics["score"] = bootstrap_mean_of_means([found.score.each for found in aspects])
    return {"metrics": metrics, "account": account}


def _crosscheck(args: argparse.Namespace) -> Found:
    evidence = {name: judged.read(run, crosscheck.FIELDS) for name, run in _named(args.runs).items()}
    found = crosscheck.compute(evidence)
    account = {name: run.account for name, run in evidence.items()}
    return {"metrics": {"CrossCheck": found.score} | found.each, "account": {"sentences": found.sentences} | account}


def _capture(args: argparse.Namespace) -> Found:
    run = judged.read(args.graphs, capture.FIELDS)
    references = [judged.read(place, capture.FIELDS) for place in args.references]
    wordnet = WordNet(args.wordnet) if args.wordnet else None
    similar = Likeness(args.encoder, args.device).of if args.encoder else None
    found = capture.compute(run, references, capture.Matcher(wordnet, similar))
    metrics: dict[str, Any] = {"CAPTURE": found.score}
    metrics |= {name: getattr(found, name) for name in capture.FIELDS}
    counts = {name: getattr(found, name) for name in ("unknown", "missing", "odd")}
    accounts = {f"reference {number}": one.account for number, one in enumerate(references, 1)}
    return {"metrics": metrics, "account": {"captions": counts, "graphs": run.account} | accounts}


def _named(runs: list[str]) -> dict[str, Path]:
    """Runs by name: NAME=RUN, or the directory's own name. UserError where two have one name."""
    found: dict[str, Path] = {}
    for given in runs:
        name, sign, place = given.partition("=")
        path = Path(place if sign else given)
        name = name if sign else path.name
        if name in found:
            raise UserError(f"evaluate: {found[name]} and {path} are both called {name!r}: write NAME=RUN.")
        found[name] = path
    return found


def add(metrics: Any) -> dict[str, Measure]:
    """Add the parsers of these metrics. Returns the function that computes each, by name."""

    def parser(name: str, help: str, runs: str = "") -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = metrics.add_parser(name, help=help)
        if runs:
            made.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help=runs)
        return made

    parser("rating", "mean of ratings from 1 to 5", "runs of configs/generate/rating.yaml, one a captioner")
    battle = "runs of configs/systems/caparena.yaml, one an opponent"
    arena = parser("caparena", "100 (wins - losses) / n against each opponent", battle)
    arena.add_argument("--of", default="ours", help="the column that is scored")
    said = parser(
        "claims", "claimed and supported claims, risk, opener rate", "runs that asked about claims, one a judge"
    )
    said.add_argument("--facts", type=Path, required=True, help="the run that took the captions apart")
    said.add_argument("--captions", type=Path, help="run or column folder of the captions, for the opener rate")
    fine = parser("dcscore", "precision and recall of facts (DeCapBench)")
    for name, of in (
        ("facts", "the run that took the captions apart"), ("verified", "the run that asked whether each is right"),
        ("matched", "the run that asked which of the reference's each is"),
        ("references", "run, export or column folder of the references' facts"),
    ):  # fmt: skip
        fine.add_argument(f"--{name}", type=Path, required=True, help=of)
    fine.add_argument("--reference-field", help="field of the references' facts (default: facts, lines)")
    parser(
        "openchair",
        "share of named objects that are not there",
        "runs of configs/systems/openchair.yaml, one a captioner",
    )
    questions = parser("vdcscore", "questions that captions answer as their reference does")
    questions.add_argument(
        "--answered", action="append", required=True, metavar="ASPECT=RUN", help="run of answers; one an aspect"
    )
    questions.add_argument(
        "--graded", action="append", required=True, type=Path, metavar="RUN", help="run of their grades; one an aspect"
    )
    parser("crosscheck", "share that other captioners do not confirm", "runs that asked, one an other captioner")
    scene = parser("capture", "scene graphs of captions against those of references")
    scene.add_argument("graphs", type=Path, help="run of configs/generate/graph.yaml over the captions")
    scene.add_argument("--references", type=Path, nargs="+", required=True, help="its runs over the references")
    scene.add_argument("--wordnet", type=Path, metavar="FOLDER", help="WordNet 3's files: /usr/share/wordnet")
    scene.add_argument("--encoder", metavar="FOLDER", help="sentence encoder, for what no synonym matches")
    scene.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the encoder")
    return {
        "rating": _rating, "caparena": _caparena, "claims": _claims, "dcscore": _dcscore, "openchair": _openchair,
        "vdcscore": _vdcscore, "crosscheck": _crosscheck, "capture": _capture,
    }  # fmt: skip
