"""Does a selection by our own CLIP's score raise retrieval, where the share of wrong pairs is known?

    python -m benchmarks.studies.selection OUT [--jobs 2] [--only clip/3]      train what is not done yet, then report
    python -m benchmarks.studies.selection OUT --report                        the table alone

What is asked, and what would falsify it, stands in selection.yaml, written before the run. Arms of one seed share their
initial weights, and all are trained on equally many samples: only which pairs these are differs. Scores, edges and
selections are those of the ordinary jobs (configs/score/clip.yaml, configs/select/top.yaml).
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.studies.arms import Arm, arguments, cpu_seconds, load, run_missing, save, word_tokenizer
from benchmarks.studies.clip_arm import clip_config, trained
from benchmarks.studies.contrasts import bootstrap, curves, paired_seeds, table_of_arms, verdicts
from benchmarks.studies.recap_clip_world import View, encode, retrieval, test_views, write_shards
from hpc.run.published import Published
from recap.worlds import emoji

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
METRICS = ("told_r5", "paraphrase_r5")


def plan(study: dict[str, Any]) -> list[Arm]:
    arms = study["arms"]
    return [Arm(share, name, seed) for seed in arms["seeds"] for name, share in arms["kept"].items()]


# --- the world ------------------------------------------------------------------------------------


def build(world: Path, study: dict[str, Any]) -> None:
    """train/*.tar and test/*.tar (jpg, txt, cls, json), a tokenizer, and drawn/: columns that the selections read."""
    about = study["world"]
    samples: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    wrong: set[str] = set()
    for part, seed, count in (
        ("train", about["seed"], about["scenes"]),
        ("test", about["seed"] + 1, about["test_scenes"]),
    ):
        made = [emoji.sample(seed, index) for index in range(count)]
        keys = [f"{part}-{index:05d}" for index in range(count)]
        texts = [told for _, _, told in made]
        if part == "train":
            moved = random.Random(f"wrong/{seed}").sample(range(count), round(count * about["wrong"]))
            for one, other in zip(moved, [*moved[1:], moved[0]], strict=True):
                texts[one] = made[other][2]
            wrong = {keys[number] for number in moved}
        samples[part] = [
            (key, files(scene, picture, text)) for key, (scene, picture, _), text in zip(keys, made, texts, strict=True)
        ]
    write_shards(world, samples, random.Random(about["seed"]))
    _write_columns(world, samples["train"], wrong, study)
    scenes = [emoji.sample(-1, number) for number in range(1000)]
    told = [text for scene, _, text in scenes for text in (text, *paraphrases(scene))]
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    word_tokenizer(told, tokens, world / "tokenizer")


def files(scene: emoji.Scene, picture: Any, text: str) -> dict[str, bytes]:
    """The members of a scene's sample."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    truth = json.dumps(emoji.truth(scene)).encode()
    return {"jpg": out.getvalue(), "txt": text.encode(), "cls": scene.sprites[0].name.encode(), "json": truth}


def paraphrases(scene: emoji.Scene) -> list[str]:
    """Every paraphrase of a scene."""
    return [emoji.paraphrase(scene, number) for number in range(len(emoji.PARAPHRASES))]


def _write_columns(world: Path, samples: Sequence[tuple[str, Any]], wrong: set[str], study: dict[str, Any]) -> None:
    """Beside each training tar: 1 for what an arm keeps, else 0. samples: in the order of the tars."""
    keys = [key for key, _ in samples]
    columns = {"oracle": [float(key not in wrong) for key in keys]}
    for seed in study["arms"]["seeds"]:
        drawn = set(
            random.Random(f"drawn/{seed}").sample(sorted(keys), round(len(keys) * study["arms"]["kept"]["random"]))
        )
        columns[f"random-{seed}"] = [float(key in drawn) for key in keys]
    table = pa.table({"key": keys, **columns})
    (world / "drawn").mkdir()
    for shard in range(0, len(keys), 512):
        pq.write_table(table.slice(shard, 512), world / "drawn" / f"{shard // 512:05d}.parquet")


# --- selections -----------------------------------------------------------------------------------


def select(arm: Arm, world: Path, runs: Path) -> Path | None:
    """The run of what an arm keeps; None where it keeps all."""
    if arm.column == "all":
        return None
    name = f"kept-{arm.column}-{arm.seed}"
    shared = [f"runs={runs}", "cluster=local", f"name={name}"]
    if arm.column == "clip":
        scores, edges = runs / f"scores-{arm.seed}", runs / f"edges-{arm.seed}.json"
        _launch(
            "score/clip.yaml", f"runs={runs}", "cluster=local", f"name={scores.name}", f"data.shards=[{world}/train]",
            "data.columns={org: {member: txt}}", "texts=[org]",
            f"scorers.clip.clip={{model: {runs}/all-{arm.seed}/exports/final}}", "decode_workers=0",
        )  # fmt: skip
        command = ["recap.select.statistics", str(scores), "--top", f"clip_org={arm.p}", "--out", str(edges)]
        subprocess.run([sys.executable, "-m", *command], check=True)
        rule = f"{{column: score, top: {arm.p}, statistics: {edges}}}"
        _launch("select/top.yaml", *shared, f"data.columns.score.run={scores}", f"rules.clip={rule}")
    else:
        field = "oracle" if arm.column == "oracle" else f"random-{arm.seed}"
        column = f"data.columns={{score: {{folder: {world}/drawn, field: {field}}}}}"
        rule = "rules={clip: {column: score, at_least: 1}}"
        _launch("select/top.yaml", *shared, f"data.shards=[{world}/train]", column, rule)
    return runs / name


def _launch(config: str, *changes: str) -> None:
    subprocess.run([sys.executable, "-m", "hpc.launch", str(CONFIGS / config), *changes], check=True)


def truth_of(kept: Path | None, world: Path) -> tuple[int, float]:
    """How many pairs are kept, and the share of them whose text is true."""
    tables = [pq.read_table(file, columns=["key", "oracle"]) for file in sorted((world / "drawn").glob("*.parquet"))]
    true = {key: bool(value) for table in tables for key, value in zip(*table.to_pydict().values(), strict=True)}
    rows = [row for shard in Published(kept) for row in shard.table().to_pylist()] if kept else []
    keys = [row["key"] for row in rows if row["status"] == "ok"] if kept else list(true)
    return len(keys), sum(true[key] for key in keys) / len(keys)


# --- one arm --------------------------------------------------------------------------------------


def train(arm: Arm, study: dict[str, Any], world: Path, runs: Path) -> dict[str, Any]:
    """Select, train and evaluate one arm in this process: for each test scene and metric a number from 0 to 1."""
    kept = select(arm, world, runs)
    config = clip_config(study, world, {"org_caption": "txt"}, {"org_caption": 1.0}, arm.seed, keep=kept)
    encoder, curve = trained(config, runs / f"{arm.name}-{arm.seed}")
    views = test_views(world)
    count, true = truth_of(kept, world)
    return {
        "arm": arm.name,
        "seed": arm.seed,
        "codes": [view.code for view in views],
        "hits": score(encoder, views),
        "kept": count,
        "true": true,
        "curve": curve,
        "cpu_s": cpu_seconds(),
    }


def score(encoder: Any, views: Sequence[View]) -> dict[str, list[float]]:
    """Of each metric 0, a half or 1 for every test scene."""
    images, keys = encode(encoder, views), [view.key for view in views]
    scenes = [emoji.scene_from_json(json.loads(view.members["json"])) for view in views]
    asked = {
        "told_r5": [view.members["txt"].decode() for view in views],
        "paraphrase_r5": [paraphrases(scene)[number % 3] for number, scene in enumerate(scenes)],
    }
    return {name: retrieval(images, encoder.texts(texts)[0], keys) for name, texts in asked.items()}


# --- the report -----------------------------------------------------------------------------------


def report(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds of every arm and metric with their range, the registered differences, and what else was told."""
    names = list(study["arms"]["kept"])
    means = {
        name: [[100 * float(np.mean(r["hits"][m])) for r in results if r["arm"] == name] for m in METRICS]
        + [[100 * r["true"] for r in results if r["arm"] == name]]
        for name in names
    }
    lines = [*table_of_arms([*METRICS, "true pairs"], means, "trained on"), ""]
    done = f"{len(results)} of {len(plan(study))} trainings are done"
    by = {(r["arm"], r["seed"]): r for r in results}
    if not all(paired_seeds(one, by) for one in study["primary"]):
        return "\n".join([*lines, f"{done}: no difference is told yet."])
    if len(results) < len(plan(study)):
        lines.append(f"{done}; differences are of the seeds that both arms have.")
    lines += verdicts([(one, one["metric"], difference(one, results)) for one in study["primary"]])
    others = [{**one, "metric": "paraphrase_r5"} for one in study["primary"]]
    others += [{"metric": metric, "better": "clip", "worse": "all"} for metric in METRICS]
    for one in others:
        mean, low, high, _ = difference(one, results)
        lines.append(
            f"{one['metric']}, {one['better']} - {one['worse']}: {mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
        )
    kept = {name: sorted({r["kept"] for r in results if r["arm"] == name}) for name in names}
    lines.append("pairs kept: " + ", ".join(f"{name} {'/'.join(map(str, counts))}" for name, counts in kept.items()))
    return "\n".join([*lines, f"CPU of the arms' own processes: {sum(r['cpu_s'] for r in results) / 60:.1f} minutes"])


def difference(primary: dict[str, Any], results: Sequence[dict[str, Any]]) -> tuple[float, float, float, float]:
    """As `bootstrap`, of a contrast: paired by seed, over the test scenes' large sprites."""
    by = {(r["arm"], r["seed"]): r for r in results}
    rows = []
    for seed in paired_seeds(primary, by):
        better, worse = (by[primary[side], seed] for side in ("better", "worse"))
        gap, codes = (
            np.subtract(*(one["hits"][primary["metric"]] for one in (better, worse))),
            np.array(better["codes"]),
        )
        rows.append([gap[codes == code].mean() for code in sorted(set(codes))])
    return bootstrap(100 * np.array(rows))


def main() -> None:
    given = arguments(__doc__, HERE / "selection.yaml", "NAME/SEED, e.g. clip/3").parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results, runs = (given.out.absolute() / part for part in ("world", "results", "runs"))
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(study["arms"]["kept"][name], name, int(seed))
        save(results, arm, train(arm, study, world, runs))
        return
    if not given.report:
        if not (world / "tokenizer").exists():
            build(world, study)
        arms = plan(study)
        for part in (True, False):  # arm clip is scored by arm all's model
            run_missing(
                [arm for arm in arms if (arm.name == "all") == part], results, given, "benchmarks.studies.selection"
            )
    found = load(results, plan(study))
    told = curves(list(study["arms"]["kept"]), found, 2)
    sys.stdout.write(f"{report(study, found)}\n\nloss over training\n{told}\n")


if __name__ == "__main__":
    main()
