"""What recaptions bring to CLIP: arms of the mixing weight p, trained with our trainer on captions of our own job.

    python -m benchmarks.studies.recap_clip OUT [--jobs 2] [--only p=0.5/3]      train what is not done yet, then report
    python -m benchmarks.studies.recap_clip OUT --report                         the table alone
    python -m benchmarks.studies.recap_clip OUT --study benchmarks/studies/recap_clip_scenes.yaml   emoji, not flags

What is asked, and what would falsify it, stands in the study's YAML file, written before the run. Arms of one seed
share initial weights, images, order and crops; only the texts differ, and all cost the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.studies.recap_clip_world import FILLER, Flags, test_views

HERE = Path(__file__).parent
WORLDS = {"flags": "benchmarks.studies.recap_clip_world.Flags", "scenes": "benchmarks.studies.recap_clip_scenes.Scenes"}
BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Arm:
    """One training: the share of original texts, the column of the others, the seed."""

    p: float
    column: str
    seed: int

    @property
    def name(self) -> str:
        return f"p={self.p:g}" if self.column == "recap" else self.column

    @property
    def file(self) -> str:
        return f"{self.name}-{self.seed}.json"


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

        def evaluate(self, module: Any, occasion: Any) -> dict[str, float]:
            scored, _ = made_of.score(Features(module, self.tokens, self.stage.image, batch=64), views)
            return {name: float(np.nanmean(values)) for name, values in scored.items()}

    task = Watched(config, 0, None, "")
    run(task, config.stage_settings(config.stages[0]), Alone(out))
    task.close()
    seconds = resource.getrusage(resource.RUSAGE_SELF)
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
        "cpu_s": round(seconds.ru_utime + seconds.ru_stime, 1),
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


class Alone:
    """The gang of one rank that an arm is."""

    rank, world, local_rank, device = 0, 1, 0, "cpu"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    def stopping(self) -> int:
        return 0

    def beat(self, **facts: Any) -> None: ...

    def event(self, event: str, **facts: Any) -> None: ...


def tokenizer(world: Flags) -> None:
    """A word tokenizer over all texts of the world, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = [*world.texts(), FILLER]
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({w for t in texts if t for w, _ in splitter.pre_tokenize_str(t.lower())})
    made = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}, "[UNK]")
    )
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), splitter
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(world.folder / "tokenizer")


# --- the report -----------------------------------------------------------------------------------


def report(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds of every arm and metric, each seed in brackets, and the primary differences."""
    names, metrics = list(dict.fromkeys(arm.name for arm in plan(study))), world_class(study).metrics
    lines = ["| arm (share of originals) | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for name in names:
        runs = [r for r in results if r["arm"] == name]
        cells = []
        for metric in metrics:
            values = [100 * float(np.nanmean(r["hits"][metric])) for r in runs]
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else "-")
        lines.append(f"| {name} ({len(runs)} seeds) | " + " | ".join(cells) + " |")
    found = [(primary, *difference(primary, results)) for primary in study["primary"]]
    lines.append("")
    adjusted = holm([share for *_, share in found])
    for (primary, mean, low, high, _), share in zip(found, adjusted):
        what = f"{primary['metric']}, {primary['better']} - {primary['worse']}"
        verdict = "shown" if low > 0 and share < 0.05 else "not shown"
        lines.append(f"{primary['claim']}: {what}: {mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}: {verdict}")
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


def curves(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Training loss of every arm, mean over seeds, at tenths of the training."""
    lines = []
    for name in dict.fromkeys(arm.name for arm in plan(study)):
        found = [r["curve"] for r in results if r["arm"] == name]
        if found:
            mean = np.mean(found, 0)
            lines.append(f"{name}: " + " ".join(f"{mean[round(i)]:.2f}" for i in np.linspace(0, len(mean) - 1, 11)))
    return "\n".join(lines)


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
    """An SVG: the metrics of the two claims over p; every seed a dot, means a line."""
    shown = dict(zip((primary["metric"] for primary in study["primary"]), ("#1b6ca8", "#c0392b"), strict=True))
    arms = [r for r in results if r["arm"].startswith("p=")]
    values = {(r["arm"], r["seed"], m): 100 * float(np.nanmean(r["hits"][m])) for r in arms for m in shown}
    top = max(10.0, max((v for v in values.values()), default=0.0))

    def x(p: float) -> float:
        return 60 + 440 * p

    def y(value: float) -> float:
        return 260 - 220 * value / top

    axes = ['<line x1="60" y1="260" x2="500" y2="260"/>', '<line x1="60" y1="260" x2="60" y2="40"/>']
    parts = ['<g stroke="#888">', *axes, "</g>"]
    ticks = [round(top * i / 4) for i in range(5)]
    parts += [f'<text x="52" y="{y(t) + 4:.0f}" text-anchor="end">{t}</text>' for t in ticks]
    parts += [f'<text x="{x(p):.0f}" y="278" text-anchor="middle">{p:g}</text>' for p in study["arms"]["p"]]
    parts.append('<text x="280" y="300" text-anchor="middle">p: share of original texts in training</text>')
    names = world_class(study).metrics
    for number, (metric, colour) in enumerate(shown.items()):
        line = []
        for p in sorted(study["arms"]["p"]):
            seeds = [v for (arm, _, m), v in values.items() if arm == f"p={p:g}" and m == metric]
            parts += [f'<circle cx="{x(p):.1f}" cy="{y(v):.1f}" r="2.5" fill="{colour}"/>' for v in seeds]
            line += [f"{x(p):.1f},{y(float(np.mean(seeds))):.1f}"] if seeds else []
        parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="70" y="{20 + 16 * number}" fill="{colour}">{names[metric]} (%)</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="540" height="310" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="540" height="310" fill="white"/>', *parts, "</svg>\n"])


def difference(primary: dict[str, Any], results: Sequence[dict[str, Any]]) -> tuple[float, float, float, float]:
    """As `bootstrap`, of a primary contrast: paired by seed, over what views show."""
    by = {(r["arm"], r["seed"]): r for r in results}
    seeds = sorted(s for arm, s in by if arm == primary["better"] and (primary["worse"], s) in by)
    rows = []
    for seed in seeds:
        better, worse = (by[primary[side], seed] for side in ("better", "worse"))
        gap = np.array(better["hits"][primary["metric"]]) - np.array(worse["hits"][primary["metric"]])
        codes = np.array(better["codes"])
        asked = [c for c in sorted(set(codes)) if not np.isnan(gap[codes == c]).all()]
        rows.append([np.nanmean(gap[codes == c]) for c in asked])
    return bootstrap(100 * np.array(rows))


def bootstrap(table: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of a table [seeds, items], its 95 % interval over seeds and items, and twice the share of draws at or below
    0 (a p-value)."""
    rng = np.random.default_rng(0)
    draws = np.empty(BOOTSTRAP)
    for i in range(BOOTSTRAP):
        sampled = table[rng.integers(0, len(table), len(table))]
        draws[i] = sampled[:, rng.integers(0, table.shape[1], table.shape[1])].mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(table.mean()), float(low), float(high), float(min(1.0, 2 * (draws <= 0).mean()))


def holm(shares: Sequence[float]) -> list[float]:
    """p-values, adjusted for as many tests."""
    order = sorted(range(len(shares)), key=lambda i: shares[i])
    adjusted, largest = [0.0] * len(shares), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, shares[i] * (len(shares) - rank)))
        adjusted[i] = largest
    return adjusted


# --- command line ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, default=HERE / "recap_clip.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="arms at the same time")
    parser.add_argument("--only", help="train this arm alone: NAME/SEED, e.g. p=0.5/3 or shuffled/0")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", type=Path, help="write the figure here")
    given = parser.parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results = given.out / "world", given.out / "results"
    made_of = world_class(study)(world, study["world"])
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(float(name[2:]), "recap", int(seed)) if name.startswith("p=") else Arm(0.2, name, int(seed))
        made = train(arm, study, world, given.out / "runs" / f"{arm.name}-{arm.seed}")
        results.mkdir(exist_ok=True)
        (results / arm.file).write_text(json.dumps(made))
        return
    if not given.report:
        if not (world / "tokenizer").exists():
            made_of.build()
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            (world / "cpu_s").write_text(f"{sum(u.ru_utime + u.ru_stime for u in used):.0f}")
            tokenizer(made_of)
        missing = [arm for arm in plan(study) if not (results / arm.file).exists()]
        random.Random(0).shuffle(missing)  # so that a stop leaves no arm without seeds
        run_all(missing, given, "benchmarks.studies.recap_clip")
    files = sorted(results.glob("*.json"))
    wanted = {arm.file for arm in plan(study)}
    found = [json.loads(f.read_text()) for f in files if f.name in wanted]
    sys.stdout.write(report(study, found) + "\n\nloss over training\n" + curves(study, found) + "\n")
    if "looks" in study["training"]:
        sys.stdout.write("\nmetrics over training\n" + learning(study, found) + "\n")
    sys.stdout.write(made_of.facts())
    if (world / "cpu_s").exists():
        minutes = int((world / "cpu_s").read_text()) / 60
        sys.stdout.write(f"CPU of the world, its captioner and captions: {minutes:.0f} minutes\n")
    if given.plot:
        given.plot.write_text(plot(study, found))


def run_all(arms: Sequence[Arm], given: argparse.Namespace, module: str) -> None:
    """Every arm in a process of its own."""
    waiting, running = list(arms), list[subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < given.jobs:
            arm = waiting.pop(0)
            command = [sys.executable, "-m", module, str(given.out), "--study", str(given.study)]
            running.append(subprocess.Popen([*command, "--only", f"{arm.name}/{arm.seed}"]))
        done = running.pop(0)
        if done.wait():
            raise SystemExit(f"an arm failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()
