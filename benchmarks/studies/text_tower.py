"""Does a larger text tower gain more from recaptions, at equal compute?

    python -m benchmarks.studies.text_tower OUT [--jobs 2] [--only large-mixed/3]    train what is not done, report
    python -m benchmarks.studies.text_tower OUT --report                             the table alone

What is asked, and what would falsify it, stands in text_tower.yaml, written before the run. Two text towers: each is
trained on alt-texts alone and on a mixture with recaptions. All trainings cost equally many FLOPs, so that the small
tower sees more samples; arms of one seed and tower share their initial weights, images, order and crops.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.studies.arms import Arm, arguments, cpu_seconds, load, run_missing, save, word_tokenizer
from benchmarks.studies.clip_arm import clip_config, trained
from benchmarks.studies.contrasts import bootstrap, curves, table_of_arms, verdicts
from benchmarks.studies.recap_clip_world import encode, test_views, write_shards, zero_shot
from benchmarks.studies.selection import files, paraphrases, score
from recap.worlds import emoji

HERE = Path(__file__).parent
METRICS = ("paraphrase_r5", "told_r5", "names_top1")
PLAIN = {name: name for name in emoji.SPRITES}
"""What alt-texts call a sprite: there is no word here that only they can teach."""


def plan(study: Mapping[str, Any]) -> list[Arm]:
    arms = study["arms"]
    return [
        Arm(p, f"{tower}-{mixture}", seed)
        for seed in arms["seeds"]
        for tower in arms["towers"]
        for mixture, p in arms["mixtures"].items()
    ]


# --- the world ------------------------------------------------------------------------------------


def build(world: Path, study: Mapping[str, Any]) -> None:
    """train/*.tar (txt: the alt-text, re: the recaption) and test/*.tar (txt: the truth), and a tokenizer."""
    about, samples = study["world"], {}
    for part, seed, count in (
        ("train", about["seed"], about["scenes"]),
        ("test", about["seed"] + 1, about["test_scenes"]),
    ):
        samples[part] = [(f"{part}-{n:05d}", _sample(part, seed, n, about["errors"])) for n in range(count)]
    write_shards(world, samples, random.Random(about["seed"]))
    scenes = [emoji.sample(-1, number) for number in range(1000)]
    told = [text for scene, _, text in scenes for text in (text, *paraphrases(scene))]
    alts = [text.replace("{}", "") for text in (*emoji.BOILERPLATE, *emoji.NAMED)]
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    word_tokenizer([*told, *alts], tokens, world / "tokenizer")


def _sample(part: str, seed: int, number: int, errors: float) -> dict[str, bytes]:
    scene, picture, told = emoji.sample(seed, number)
    if part == "test":
        return files(scene, picture, told)
    rng = random.Random(f"text tower/{seed}/{number}")
    made = files(scene, picture, emoji.alt_text(scene, rng, PLAIN))
    return made | {"re": recaption(scene, told, errors, rng).encode()}


def recaption(scene: emoji.Scene, told: str, errors: float, rng: random.Random) -> str:
    """The truth, or with probability `errors` a description with another large sprite."""
    if rng.random() >= errors:
        return told
    there = {sprite.name for sprite in scene.sprites}
    other = rng.choice([name for name in emoji.SPRITES if name not in there])
    wrong = replace(scene, sprites=(replace(scene.sprites[0], name=other), *scene.sprites[1:]))
    return emoji.describe(wrong, rng.randrange(len(emoji.TEMPLATES)))


# --- one arm --------------------------------------------------------------------------------------


def at_equal_flops(study: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The study with the model and the samples of a tower: whole batches, as many as cost what the large tower's do."""
    towers, t = study["arms"]["towers"], study["training"]
    costs = {name: pair_cost(study, shape) for name, shape in towers.items()}
    samples = round(study["samples"] * costs["large"] / costs[tower] / t["batch"]) * t["batch"]
    training = t | {"samples": samples, "warmup": round(t["warmup"] * samples)}
    return {**study, "model": study["model"] | {"text": towers[tower]}, "training": training}


def pair_cost(study: Mapping[str, Any], text: str) -> float:
    """FLOPs of training on one pair with such a text tower."""
    from recap.clip.settings import ClipConfig, ClipModelConfig, Stage
    from recap.clip.task import pair_flops
    from recap.text_policy import TextPolicyConfig

    config = ClipConfig(model=ClipModelConfig(text=text, **study["model"]), text=TextPolicyConfig(weights={"re": 1.0}))
    return pair_flops(config, Stage(image=study["training"]["image"]), study["training"]["batch"])


def train(arm: Arm, study: Mapping[str, Any], world: Path, runs: Path) -> dict[str, Any]:
    """Train and evaluate one arm in this process: for each test scene and metric a number from 0 to 1."""
    tower, _, _ = arm.column.partition("-")
    sized = at_equal_flops(study, tower)
    members = {"org_caption": "txt", "re_caption": "re"}
    weights = {name: share for name, share in zip(members, (arm.p, 1 - arm.p), strict=True) if share}
    config = clip_config(sized, world, {name: members[name] for name in weights}, weights, arm.seed)
    encoder, curve = trained(config, runs / f"{arm.name}-{arm.seed}")
    views = test_views(world)
    codes = [view.code for view in views]
    hits = score(encoder, views) | {"names_top1": zero_shot(encoder, encode(encoder, views), codes, PLAIN)}
    samples = sized["training"]["samples"]
    return {
        "arm": arm.name, "seed": arm.seed, "codes": codes, "hits": hits, "samples": samples,
        "flops": samples * pair_cost(study, sized["model"]["text"]), "curve": curve, "cpu_s": cpu_seconds(),
    }  # fmt: skip


# --- the report -----------------------------------------------------------------------------------

SIGNS = {
    "gain of large - gain of small": {"large-mixed": 1, "large-raw": -1, "small-mixed": -1, "small-raw": 1},
    "gain of large": {"large-mixed": 1, "large-raw": -1},
    "gain of small": {"small-mixed": 1, "small-raw": -1},
    "large - small, mixed": {"large-mixed": 1, "small-mixed": -1},
    "large - small, raw": {"large-raw": 1, "small-raw": -1},
}


def difference(
    signs: Mapping[str, int], metric: str, results: Sequence[Mapping[str, Any]]
) -> tuple[float, float, float, float] | None:
    """As `bootstrap`, of a signed sum of arms: paired by seed, over the test scenes' large sprites. None: no seed has
    all of the arms."""
    by = {(result["arm"], result["seed"]): result for result in results}
    rows = []
    for seed in sorted({seed for _, seed in by}):
        if all((arm, seed) in by for arm in signs):
            gap = np.sum([sign * np.array(by[arm, seed]["hits"][metric]) for arm, sign in signs.items()], axis=0)
            codes = np.array(by[next(iter(signs)), seed]["codes"])
            rows.append([gap[codes == code].mean() for code in sorted(set(codes))])
    return bootstrap(100 * np.array(rows)) if rows else None


def report(study: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds of every arm and metric with their range, the registered difference, and what else was told."""
    arms = dict.fromkeys(arm.name for arm in plan(study))
    means = {
        name: [[100 * float(np.mean(r["hits"][m])) for r in results if r["arm"] == name] for m in METRICS]
        for name in arms
    }
    lines = [*table_of_arms(METRICS, means, "text tower and texts"), ""]
    if len(results) < len(plan(study)):
        lines.append(f"{len(results)} of {len(plan(study))} trainings are done")
    for signs, (what, chosen) in enumerate(SIGNS.items()):
        for metric in METRICS:
            if (found := difference(chosen, metric, results)) is None:
                continue
            if not signs and metric == study["primary"]["metric"]:
                primary = study["primary"] | {"better": "gain of large", "worse": "gain of small"}
                lines += verdicts([(primary, metric, found)])
            else:
                mean, low, high, _ = found
                lines.append(f"{metric}, {what}: {mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}")
    cost = {r["arm"]: f"{r['arm']} {r['samples']:,} samples, {r['flops'] / 1e12:.3f} TFLOP" for r in results}
    lines.append("cost of a training: " + "; ".join(cost[name] for name in arms if name in cost))
    return "\n".join([*lines, f"CPU of the arms' processes: {sum(r['cpu_s'] for r in results) / 60:.1f} minutes"])


def main() -> None:
    given = arguments(__doc__, HERE / "text_tower.yaml", "NAME/SEED, e.g. large-mixed/3").parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results, runs = (given.out.absolute() / part for part in ("world", "results", "runs"))
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(study["arms"]["mixtures"][name.partition("-")[2]], name, int(seed))
        save(results, arm, train(arm, study, world, runs))
        return
    if not given.report:
        if not (world / "tokenizer").exists():
            build(world, study)
        run_missing(plan(study), results, given, "benchmarks.studies.text_tower")
    found = load(results, plan(study))
    told = curves(list(dict.fromkeys(arm.name for arm in plan(study))), found, 2)
    sys.stdout.write(f"{report(study, found)}\n\nloss over training\n{told}\n")


if __name__ == "__main__":
    main()
