"""What recaptions bring to CLIP: arms of the mixing weight p, trained with our trainer on captions of our own job.

    python -m benchmarks.studies.recap_clip OUT [--jobs 2] [--only p=0.5/3]      train what is not done yet, then report
    python -m benchmarks.studies.recap_clip OUT --report                         the table alone
    python -m benchmarks.studies.recap_clip OUT --study benchmarks/studies/recap_clip_scenes.yaml   emoji, not flags

What is asked, and what would falsify it, stands in the study's YAML file, written before the run. Arms of one seed
share initial weights, images, order and crops; only the texts differ, and all cost the same.
"""

from __future__ import annotations

import importlib
import json
import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.studies.arms import Alone, Arm, arguments, cpu_seconds, load, run_missing, save, word_tokenizer
from benchmarks.studies.contrasts import bootstrap, curves, figure, paired_seeds, table_of_arms, verdicts
from benchmarks.studies.recap_clip_world import FILLER, Flags, test_views

HERE = Path(__file__).parent
WORLDS = {"flags": "benchmarks.studies.recap_clip_world.Flags", "scenes": "benchmarks.studies.recap_clip_scenes.Scenes"}


def plan(study: dict[str, Any]) -> list[Arm]:
    arms = [Arm(p, "recap", seed) for seed in study["arms"]["seeds"] for p in study["arms"]["p"]]
    controls = study["controls"]
    return arms + [Arm(0.2, column, seed) for seed in controls["seeds"] for column in controls["columns"]]


def world_class(study: dict[str, Any]) -> type[Flags]:
    """What `world.kind` names; of other kinds than flags, with the same methods."""
    module, _, name = WORLDS[study["world"].get("kind", "flags")].rpartition(".")
    return getattr(importlib.import_module(module), name)


# --- one arm --------------------------------------------------------------------------------------


def train(arm: Arm, study: dict[str, Any], world: Path, out: Path) -> dict[str, Any]:
    """Train and evaluate one arm in this process: 0 or 1 for each test view and metric, and the learning curve."""
    import torch

    from recap.clip.encoder import Encoder, Features
    from recap.clip.task import ClipTask
    from recap.train.loop import train as run

    torch.set_num_threads(1)
    config = _config(arm, study, world)
    made_of, views = world_class(study)(world, study["world"]), test_views(world)

    class Watched(ClipTask):
        """Asks the study's questions while it trains."""

        def evaluate(self, module: Any, context: Any) -> dict[str, float]:
            scored, _ = made_of.score(Features(module, self.tokens, self.stage.image, batch=64), views)
            return {name: float(np.nanmean(values)) for name, values in scored.items()}

    task = Watched(config, 0, None, "")
    run(task, config.stage_settings(config.stages[0]), Alone(out))
    task.close()
    seconds = cpu_seconds()
    hits, cut = made_of.score(Encoder(out / "exports" / "final"), views)
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "arm": arm.name,
        "seed": arm.seed,
        "codes": [view.code for view in views],
        "hits": hits,
        "cut": cut,
        "curve": [line["loss"] for line in told if "loss" in line][::10],
        "learning": [{k: v for k, v in line.items() if k in ("samples", *hits)} for line in told if "loss" not in line],
        "cpu_s": seconds,
    }


def _config(arm: Arm, study: dict[str, Any], world: Path) -> Any:
    from recap.clip.settings import ClipConfig, ClipModelConfig, Stage
    from recap.data.column import ColumnConfig
    from recap.data.samples import JoinedDataConfig
    from recap.text_policy import TextPolicyConfig
    from recap.train.settings import TrainSettings

    t, m = study["training"], study["model"]
    other = ColumnConfig(run=str(world / "captions")) if arm.column == "recap" else ColumnConfig(
        folder=str(world / arm.column), field="caption"
    )  # fmt: skip
    vocabulary = len(json.loads((world / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    return ClipConfig(
        model=ClipModelConfig(vocabulary=vocabulary, tokenizer=str(world / "tokenizer"), **m),
        data=JoinedDataConfig(
            shards=[str(world / "train")], root=str(world), streams=8, window=4, decoders=1, readers=1,
            columns={"org_caption": ColumnConfig(member="txt"), "re_caption": other},
        ),
        text=TextPolicyConfig(weights={"org_caption": arm.p, "re_caption": 1 - arm.p}),
        stages=[Stage(image=t["image"], samples=t["samples"], warmup=t["warmup"])],
        train=TrainSettings(
            batch=t["batch"], lr=t["lr"], weight_decay=t["weight_decay"], beta2=0.95, clip=1.0, seed=arm.seed,
            threads=1, evaluate_every=t["samples"] // t["looks"] if "looks" in t else 0,
        ),
        area=t.get("area", 0.4),
    )  # fmt: skip


def tokenizer(world: Flags) -> None:
    """A word tokenizer over all texts of the world, with BERT's special tokens."""
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    word_tokenizer([*world.texts(), FILLER], tokens, world.folder / "tokenizer")


# --- the report -----------------------------------------------------------------------------------


def report(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds of every arm and metric, each seed in brackets, and the primary differences."""
    metrics = world_class(study).metrics
    runs = {name: [r for r in results if r["arm"] == name] for name in dict.fromkeys(arm.name for arm in plan(study))}
    means = {
        name: [[100 * float(np.nanmean(r["hits"][metric])) for r in found] for metric in metrics]
        for name, found in runs.items()
    }
    found = [(primary, primary["metric"], difference(primary, results)) for primary in study["primary"]]
    lines = [*table_of_arms(list(metrics), means), "", *verdicts(found)]
    lines.append(falsified(study, results))
    cut = {name: max(r["cut"][name] for r in results) for name in results[0]["cut"]} if results else {}
    told = ", ".join(f"{name} {share:.0%}" for name, share in cut.items())
    lines.append(f"queries cut by the token limit: {told}; CPU: {sum(r['cpu_s'] for r in results) / 60:.0f} minutes")
    return "\n".join(lines)


def falsified(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """The registered check of the retrieval claim: the controls must stay 2 points below p = 0.2."""
    metric, means = study["primary"][0]["metric"], {}
    for name in ("p=0.2", "shuffled", "padded"):
        runs = [r for r in results if r["arm"] == name and r["seed"] in study["controls"]["seeds"]]
        means[name] = 100 * float(np.mean([np.nanmean(r["hits"][metric]) for r in runs])) if runs else math.nan
    gap = means["p=0.2"] - max(means["shuffled"], means["padded"])
    verdict = "passed" if gap > 2 else "failed"
    return f"controls, {metric} at the same seeds: p=0.2 is {gap:+.1f} points above the nearer control: {verdict}"


def learning(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Every metric of every arm while it was trained (`training.looks`), percent, mean over seeds."""
    lines = []
    for metric in world_class(study).metrics:
        for name in dict.fromkeys(arm.name for arm in plan(study)):
            found = [[100 * look[metric] for look in r["learning"]] for r in results if r["arm"] == name]
            if found:
                lines.append(f"{metric} {name}: " + " ".join(f"{value:.1f}" for value in np.mean(found, 0)))
    return "\n".join(lines)


def plot(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """An SVG: the metrics of the two claims over p."""
    lines, names = [], world_class(study).metrics
    for primary, colour in zip(study["primary"], ("#1b6ca8", "#c0392b"), strict=True):
        metric = primary["metric"]
        over_p = {
            p: [100 * float(np.nanmean(r["hits"][metric])) for r in results if r["arm"] == f"p={p:g}"]
            for p in study["arms"]["p"]
        }
        lines.append((f"{names[metric]} (%)", colour, over_p))
    return figure(study["arms"]["p"], lines)


def difference(primary: dict[str, Any], results: Sequence[dict[str, Any]]) -> tuple[float, float, float, float]:
    """As `bootstrap`, of a primary contrast: paired by seed, over what views show."""
    by = {(r["arm"], r["seed"]): r for r in results}
    rows = []
    for seed in paired_seeds(primary, by):
        better, worse = (by[primary[side], seed] for side in ("better", "worse"))
        gap = np.array(better["hits"][primary["metric"]]) - np.array(worse["hits"][primary["metric"]])
        codes = np.array(better["codes"])
        asked = [c for c in sorted(set(codes)) if not np.isnan(gap[codes == c]).all()]
        rows.append([np.nanmean(gap[codes == c]) for c in asked])
    return bootstrap(100 * np.array(rows))


# --- command line ---------------------------------------------------------------------------------


def main() -> None:
    given = arguments(__doc__, HERE / "recap_clip.yaml", "NAME/SEED, e.g. p=0.5/3 or shuffled/0").parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results = given.out / "world", given.out / "results"
    made_of = world_class(study)(world, study["world"])
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(float(name[2:]), "recap", int(seed)) if name.startswith("p=") else Arm(0.2, name, int(seed))
        made = train(arm, study, world, given.out / "runs" / f"{arm.name}-{arm.seed}")
        save(results, arm, made)
        return
    if not given.report:
        if not (world / "tokenizer").exists():
            made_of.build()
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            (world / "cpu_s").write_text(f"{sum(u.ru_utime + u.ru_stime for u in used):.0f}")
            tokenizer(made_of)
        run_missing(plan(study), results, given, "benchmarks.studies.recap_clip")
    found = load(results, plan(study))
    names = list(dict.fromkeys(arm.name for arm in plan(study)))
    sys.stdout.write(report(study, found) + "\n\nloss over training\n" + curves(names, found, 2) + "\n")
    if "looks" in study["training"]:
        sys.stdout.write("\nmetrics over training\n" + learning(study, found) + "\n")
    sys.stdout.write(made_of.facts())
    if (world / "cpu_s").exists():
        minutes = int((world / "cpu_s").read_text()) / 60
        sys.stdout.write(f"CPU of the world, its captioner and captions: {minutes:.0f} minutes\n")
    if given.plot:
        given.plot.write_text(plot(study, found))


if __name__ == "__main__":
    main()
