"""Does a metric of captions rank captioners as the truth does? The study of captioner_ranks.yaml.

python -m benchmarks.studies.captioner_ranks OUT [--json FILE] [--study FILE.yaml] [--jobs 2] [--quick]

OUT is a folder for trainings and captions: what is there is not made again. The tables are printed; --json writes all
numbers. --quick trains nothing, and leaves the trained captioners out: one seed, few scenes, seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.studies.planted_errors import (
    FACTUAL,
    Judge,
    World,
    judged_metrics,
    plain,
    with_errors,
    word_metrics,
    world,
)
from benchmarks.timing import say
from recap.demo import CAPTIONER
from recap.evaluate.intervals import Mean
from recap.worlds import shapes
from recap.worlds.shape_errors import PLANTED

_RESAMPLES = 1000
_AT_ONCE = 32  # pictures that a captioner is shown together
TRAINING, BY_FACTS, BY_WHOLE = "training", "pool: facts", "pool: whole"

Texts = dict[str, str]


# --- captioners -------------------------------------------------------------------------------------


def trained(study: Mapping[str, Any], seed: int, out: Path) -> dict[str, Path]:
    """Checkpoints by name: the shipped captioner, and those of a training from it."""
    config = {**study["training"], "name": f"training-{seed}"}
    config["train"] = {**config["train"], "seed": seed}
    file = out / f"training-{seed}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run([sys.executable, "-m", "hpc.launch", str(file), f"runs={out}"], check=True)
    found = {"shipped": CAPTIONER}
    for samples in study["checkpoints"]:
        model, partial = out / f"model-{seed}-{samples}", out / f"model-{seed}-{samples}.partial"
        if not model.exists():
            command = [sys.executable, "-m", "recap.sft.export", str(out / f"training-{seed}"), str(partial)]
            subprocess.run([*command, "--samples", str(samples)], check=True)
            partial.rename(model)
        found[f"{samples / config['train']['samples']:.0%}"] = model
    return found


def told(model: Path, seed: int, keys: Sequence[str]) -> Texts:
    """A checkpoint's captions of a seed's scenes: greedy, the paper's prompt."""
    import torch

    from recap.engine.settings import PAPER_PROMPT
    from recap.evaluate.answers import Answerer

    torch.set_num_threads(1)
    answerer = Answerer(model)
    found: Texts = {}
    for first in range(0, len(keys), _AT_ONCE):
        part = keys[first : first + _AT_ONCE]
        images = [shapes.sample(1000 + seed, int(key)).image for key in part]
        found.update(zip(part, answerer.ask_each(PAPER_PROMPT, images), strict=True))
    return found


def learned(study: Mapping[str, Any], out: Path, jobs: int) -> dict[int, dict[str, Texts]]:
    """Captions of the shipped captioner and of the checkpoints by seed; kept in files."""
    files = {seed: out / f"captions-{seed}.json" for seed in study["seeds"]}
    waiting = [seed for seed, file in files.items() if not file.exists()]
    with ThreadPoolExecutor(jobs) as pool:
        models = list(pool.map(lambda seed: trained(study, seed, out), waiting))
    for seed, found in zip(waiting, models, strict=True):
        keys = list(world(seed, study["scenes"]).right)
        said = {name: told(model, seed, keys) for name, model in found.items()}
        files[seed].write_text(json.dumps(said, indent=1))
    return {seed: json.loads(file.read_text()) for seed, file in files.items()}


# --- values -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Of one seed. facts: by captioner, of each image (see the yaml); whole: 1 where a caption is wholly right, else 0.
    each: by metric and captioner, of each image, NaN where it says nothing of it. points: the metrics' own numbers.
    """

    captioners: list[str]
    facts: np.ndarray
    whole: np.ndarray
    each: dict[str, np.ndarray]
    points: dict[str, np.ndarray]


def measure(study: Mapping[str, Any], seed: int, found: World, models: Mapping[str, Texts]) -> Measured:
    """Every metric of every captioner."""
    judge = Judge(found, study["wrong"], seed)
    others = [with_errors(found, FACTUAL, study["evidence"], 100 + 2 * seed + n) for n in range(2)]
    texts: dict[str, Texts] = {**models, "right": dict(found.right)}
    texts |= {
        f"{kind} {share:.0%}": with_errors(found, (kind,), share, seed) for kind in PLANTED for share in study["shares"]
    }
    rows = [{**judged_metrics(found, said, others, judge), **word_metrics(found, said)} for said in texts.values()]
    names, keys = [*study["worse"]["lower"], *study["worse"]["higher"]], list(found.right)
    each = {name: np.array([_each(row[name], keys) for row in rows]) for name in names}
    points = {name: np.array([plain(row)[name] for row in rows]) for name in names}
    checked = [[found.truths[key].judge(said.get(key, "")) for key in keys] for said in texts.values()]
    facts = [[j.right / max(j.right + j.wrong + j.unsaid, 1) for j in row] for row in checked]
    whole = [[float(j.right > 0 and not j.wrong and not j.unsaid) for j in row] for row in checked]
    return Measured(list(texts), np.array(facts), np.array(whole), each, points)


def _each(found: Mean | float | None, keys: Sequence[str]) -> list[float]:
    known = found.each if isinstance(found, Mean) else {}
    by_key = {name[-1] if isinstance(name, tuple) else name: value for name, value in known.items()}
    return [by_key.get(key, float("nan")) for key in keys]


# --- rankings ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Of a metric with a known ranking of n captioners. bounds: 95 % of the resamples of images, of Spearman's and of
    Kendall's coefficient; None where the metric says nothing of one caption. NaN: the metric says the same of all.
    """

    spearman: float
    kendall: float
    n: int
    bounds: tuple[tuple[float, float], tuple[float, float]] | None

    @property
    def plain(self) -> dict[str, Any]:
        return {"spearman": self.spearman, "kendall": self.kendall, "captioners": self.n, "bounds": self.bounds}


def columns(made: Measured, study: Mapping[str, Any]) -> Iterator[tuple[str, list[int], np.ndarray]]:
    """Known rankings: their name, which captioners, and what is known of each image's caption, [captioners, images]."""
    names = made.captioners
    models = [at for at, name in enumerate(names[: names.index("right")])]
    right = names.index("right")
    if models:
        yield TRAINING, [*models, right], made.facts[[*models, right]]
    for kind in PLANTED:
        ladder = [right, *(names.index(f"{kind} {share:.0%}") for share in study["shares"])]
        shares = -np.array([0.0, *study["shares"]])
        yield kind, ladder, np.repeat(shares[:, None], made.facts.shape[1], axis=1)
    pool = [*models, right]
    pool += [names.index(f"{kind} {share:.0%}") for kind in FACTUAL for share in study["shares"]]
    yield BY_FACTS, pool, made.facts[pool]
    yield BY_WHOLE, pool, made.whole[pool]


def agreements(made: Measured, study: Mapping[str, Any], seed: int) -> dict[str, dict[str, Agreement]]:
    """By known ranking and metric."""
    images = made.facts.shape[1]
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), _RESAMPLES)
    weights = np.concatenate([np.ones((1, images)), drawn])  # first all images as they are
    signs = dict.fromkeys(study["worse"]["lower"], 1.0) | dict.fromkeys(study["worse"]["higher"], -1.0)
    return {
        column: {
            name: agreement(known, sign * made.each[name][chosen], sign * made.points[name][chosen], weights)
            for name, sign in signs.items()
        }
        for column, chosen, known in columns(made, study)
    }


def agreement(known: np.ndarray, each: np.ndarray, points: np.ndarray, weights: np.ndarray) -> Agreement:
    """Of one metric.

    Args:
        known, each: [captioners, images], each NaN where the metric says nothing. points: [captioners], what counts
            where it says nothing of any caption. weights: [resamples, images], the first of them ones.
    """
    alone = bool(np.isnan(each).all())
    has = ~np.isnan(points if alone else each).reshape(len(points), -1).all(axis=1)
    truth = _means(known[has], weights)
    metric = points[None, has] if alone else _means(each[has], weights)
    spearman, kendall = rank_correlations(truth[:1] if alone else truth, metric)
    if alone or np.isnan(spearman[1:]).all():
        return Agreement(float(spearman[0]), float(kendall[0]), int(has.sum()), None)
    low, high = (np.nanpercentile([spearman[1:], kendall[1:]], share, axis=1) for share in (2.5, 97.5))
    bounds = ((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
    return Agreement(float(spearman[0]), float(kendall[0]), int(has.sum()), bounds)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the images with a value, [resamples, captioners]; rounded, so that the order of equal sums is none."""
    with np.errstate(invalid="ignore"):
        return (weights @ np.nan_to_num(values).T / (weights @ ~np.isnan(values).T)).round(9)


def rank_correlations(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's coefficient, with mean ranks for equal values, and Kendall's tau-b, [resamples], of values of
    [resamples, captioners]; NaN where one side says the same of all or not a thing of one.
    """
    signs = [np.sign(values[:, :, None] - values[:, None, :]) for values in (one, other)]
    ranks = [found.sum(axis=2)[:, :, None] for found in signs]  # twice the mean rank, around 0
    return _cosine(*ranks), _cosine(*signs)


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = np.sqrt((one * one).sum(axis=(1, 2)) * (other * other).sum(axis=(1, 2)))
    return np.divide((one * other).sum(axis=(1, 2)), size, out=np.full(len(size), np.nan), where=size > 0)


# --- the report -------------------------------------------------------------------------------------


def report(study: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tables of the truth, of agreement, and of what was expected, of seeds as `as_json` has them."""
    for one in found:
        if models := [name for name in one["truth"] if name in ("shipped", "right") or name[0].isdigit()]:
            told = ", ".join(f"{name} {100 * one['truth'][name]['facts']:.1f}" for name in models)
            whole = ", ".join(f"{name} {100 * one['truth'][name]['whole']:.0f}" for name in models)
            yield f"Seed {one['seed']}: facts right, %: {told}; captions wholly right, %: {whole}."
    names = list(found[0]["agreement"])
    yield from ("", "| metric | " + " | ".join(names) + " |", "|---|" + "---|" * len(names))
    for metric in [*study["worse"]["lower"], *study["worse"]["higher"]]:
        yield f"| {metric} | {_cells(found, names, metric, 'spearman')} |"
    pools = [name for name in names if name in (TRAINING, BY_FACTS, BY_WHOLE)]
    yield from ("", "| Kendall's tau-b | " + " | ".join(pools) + " |", "|---|" + "---|" * len(pools))
    for metric in [*study["worse"]["lower"], *study["worse"]["higher"]]:
        yield f"| {metric} | {_cells(found, pools, metric, 'kendall')} |"
    yield from ("", "| expected | of | met | not met |", "|---|---|---|---|")
    yield from _expected(study, found)


def _cells(found: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str, coefficient: str) -> str:
    return " | ".join(_cell([one["agreement"][name] for one in found], metric, coefficient) for name in names)


def _cell(columns: Sequence[Mapping[str, Any]], metric: str, coefficient: str) -> str:
    seeds = [one[metric] for one in columns]
    most = max(one["captioners"] for metrics in columns for one in metrics.values())
    at = ("spearman", "kendall").index(coefficient)
    values = [one[coefficient] for one in seeds]
    if any(np.isnan(values)):
        return "same of all"
    bounds = [one["bounds"][at] for one in seeds if one["bounds"]]
    spread = f" ({min(low for low, _ in bounds):.2f} to {max(high for _, high in bounds):.2f})" if bounds else ""
    fewer = min(one["captioners"] for one in seeds)
    return f"{statistics.fmean(values):.2f}{spread}" + (f", n = {fewer}" if fewer < most else "")


def _expected(study: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for column, metrics, least, most in study["expected"]:
        if column not in found[0]["agreement"]:
            continue
        seen = {name: [_ranked(one["agreement"][column][name]) for one in found] for name in metrics}
        met = [name for name, values in seen.items() if all(least <= value + 1e-9 <= most + 2e-9 for value in values)]
        failed = [
            f"{name} ({', '.join(f'{value:.2f}' for value in values)})"
            for name, values in seen.items()
            if name not in met
        ]
        yield f"| {least:g} to {most:g} | {column} | {', '.join(met) or '-'} | {', '.join(failed) or '-'} |"


def _ranked(one: Mapping[str, Any]) -> float:
    """Spearman's coefficient; 0 where the metric says the same of all: it notices nothing."""
    return 0.0 if np.isnan(one["spearman"]) else float(one["spearman"])


def as_json(seed: int, made: Measured, found: Mapping[str, Mapping[str, Agreement]]) -> dict[str, Any]:
    """Of one seed: what is known, every number, every agreement. NaN: a metric is undefined."""
    facts, whole = made.facts.mean(axis=1), made.whole.mean(axis=1)
    return {
        "seed": seed,
        "truth": {name: {"facts": facts[at], "whole": whole[at]} for at, name in enumerate(made.captioners)},
        "values": {name: dict(zip(made.captioners, row.tolist(), strict=True)) for name, row in made.points.items()},
        "agreement": {column: {name: one.plain for name, one in metrics.items()} for column, metrics in found.items()},
    }


def run(study: Mapping[str, Any], models: Mapping[int, Mapping[str, Texts]]) -> list[dict[str, Any]]:
    """All seeds, one after another. models: captions of captioners that were trained, by seed."""
    found = []
    for seed in study["seeds"]:
        made = measure(study, seed, world(seed, study["scenes"]), models.get(seed, {}))
        found.append(as_json(seed, made, agreements(made, study, seed)))
        say(f"seed {seed} done")
    return found


def _nulls(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _nulls(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulls(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one seed of 8 scenes, without the trained captioners")
    args = parser.parse_args()
    study = yaml.safe_load(args.study.read_text())
    if args.quick:
        study |= {"seeds": study["seeds"][:1], "scenes": 8}
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    # Captions that are made here have no digests of their images, and need none.
    logging.getLogger("recap.data.same_image").setLevel(logging.ERROR)
    found = run(study, {} if args.quick else learned(study, args.out, args.jobs))
    used = os.times()
    minutes = (used.user + used.system + used.children_user + used.children_system) / 60
    if args.json:
        args.json.write_text(json.dumps({"seeds": _nulls(found), "cpu_minutes": round(minutes, 1)}, indent=1) + "\n")
    sys.stdout.write("\n".join(report(study, found)) + "\n\n")
    sys.stdout.write(f"{minutes:.1f} CPU-minutes, {(time.monotonic() - begun) / 60:.1f} minutes.\n")


if __name__ == "__main__":
    main()
