"""What recaptions bring to a text-to-image DiT: arms of the mixing weight p, trained with our trainer on our captions.

    python -m benchmarks.studies.recap_dit OUT [--jobs 2] [--only p=0.5/2]       train what is not done yet, then report
    python -m benchmarks.studies.recap_dit OUT --report                          the table alone
    python -m benchmarks.studies.recap_dit OUT --validate                        the checker on real, distorted views

What is asked, and what would falsify it, stands in recap_dit.yaml, written before the run. Arms of one seed share
initial weights, images, order, noise and times; only the texts differ, and all cost the same. Images of all arms are
drawn from the same noise, with the same guidance.
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
import yaml
from PIL import Image, ImageDraw

from benchmarks.studies.arms import Alone, Arm, arguments, cpu_seconds, load, run_missing, save, word_tokenizer
from benchmarks.studies.contrasts import bootstrap, curves, figure, paired_seeds, table_of_arms, verdicts
from benchmarks.studies.recap_clip_world import flags, unseen
from benchmarks.studies.recap_dit_world import ATTRIBUTES, PALETTE, SIDE, STYLES, judge, prompts, truth_of
from recap.data.tars import Sample, read_samples

HERE = Path(__file__).parent


def plan(study: dict[str, Any]) -> list[Arm]:
    return [Arm(p, "recap", seed) for seed in study["arms"]["seeds"] for p in study["arms"]["p"]]


# --- the world and the text encoder ---------------------------------------------------------------


def prepare(study: dict[str, Any], world: Path) -> None:
    """Tars, recaptions by our caption job, a tokenizer, and the frozen text encoder."""
    if not (world / "captions").exists():
        from benchmarks.studies.recap_clip_world import build

        build(world, study["world"])
    if not (world / "text_encoder").exists():
        tokenizer(world)
        subprocess.run([sys.executable, "-m", "hpc.launch", str(_encoder_config(study, world))], check=True)
        (world / "text_encoder").symlink_to("clip/exports/final")


def _encoder_config(study: dict[str, Any], world: Path) -> Path:
    e = study["text_encoder"]
    vocabulary = len(json.loads((world / "tokenizer-clip" / "tokenizer.json").read_text())["model"]["vocab"])
    model = {key: e[key] for key in ("vision", "text", "embed", "patch", "context")}
    config = {
        "name": "clip", "runs": str(world), "cluster": "local", "trainer": "recap.clip.trainer.ClipTrainer",
        "model": {"architecture": "hf", "vocabulary": vocabulary, "tokenizer": str(world / "tokenizer-clip"), **model},
        "data": _data(world), "text": {"weights": {"org_caption": 0.5, "re_caption": 0.5}},
        "stages": [{"image": e["image"], "samples": e["samples"]}],
        "train": {"batch": e["batch"], "lr": e["lr"], "warmup": 0.05, "seed": e["seed"], "threads": 1},
    }  # fmt: skip
    path = world / "clip.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _data(world: Path) -> dict[str, Any]:
    columns = {"org_caption": {"member": "txt"}, "re_caption": {"run": str(world / "captions")}}
    reading = {"streams": 8, "window": 4, "decoders": 1, "readers": 1}
    return {"shards": [str(world / "train")], "root": str(world), "columns": columns, **reading}


def tokenizer(world: Path) -> None:
    """A word tokenizer over all texts of the world, with CLIP's special tokens."""
    from benchmarks.studies.recap_clip_world import BOILERPLATE, captions, descriptions, flags

    names = [f"flag of {name} national" for _, name in flags().values()]
    grammar = [prompt.text for prompt in prompts(set(), 2000)["scenes"]]
    texts = [*captions(world, "train").values(), *descriptions().values(), *names, *BOILERPLATE, *grammar]
    tokens = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    word_tokenizer(texts, tokens, world / "tokenizer-clip")


# --- one arm --------------------------------------------------------------------------------------


def train(arm: Arm, study: dict[str, Any], world: Path, out: Path) -> dict[str, Any]:
    """Train and evaluate one arm in this process: 1 or 0 for each prompt, attribute and guidance, and the curve."""
    import torch

    from recap.dit.task import DitTask
    from recap.train.loop import train as run

    torch.set_num_threads(1)
    config = _config(arm, study, world)
    task = DitTask(config, None)
    code = run(task, config.train, Alone(out))
    task.close()
    if code:
        raise SystemExit(f"{arm.name}, seed {arm.seed}: the training ended with {code}")
    result = {"arm": arm.name, "seed": arm.seed, **evaluate(out, study)}
    result["curve"] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    result["cpu_s"] = cpu_seconds()
    return result


def _config(arm: Arm, study: dict[str, Any], world: Path) -> Any:
    from hpc import config as configs

    t, m = study["training"], study["model"]
    tree = {
        "name": "arm", "cluster": {"kind": "local"}, "trainer": "recap.dit.trainer.DitTrainer",
        "model": {**m, "text_encoder": str(world / "text_encoder")}, "data": _data(world),
        "objective": {"kind": "flow", "flip": False},
        "text": {"weights": {"org_caption": arm.p, "re_caption": 1 - arm.p}},
        "train": {**t, "seed": arm.seed, "threads": 1, "log_every": t["samples"] // 40},
    }  # fmt: skip
    return configs.check(tree, "recap_dit.yaml").work


def evaluate(out: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Draw an image for every prompt, and judge it; a picture of the first prompts stays beside the model."""
    from recap.dit.export import read
    from recap.dit.sampling import Sampler, Wanted, scheduler_of
    from recap.dit.vae import Pixels
    from recap.randomness import draw

    s = study["sampling"]
    model = read(out / "exports" / "final")
    scheduler = scheduler_of("dpm", "flow", False)
    sampler = Sampler(model.transformer, model.text_encoder, Pixels(), scheduler, s["steps"], s["batch"])
    hidden = unseen(list(flags()), study["world"]["unseen"], study["world"]["seed"])
    found: dict[str, Any] = {"hits": {}, "keys": {}}
    for style, asked in prompts(hidden, s["scenes"]).items():
        found["keys"][style] = [prompt.key for prompt in asked]
        for guidance in s["guidance"]:
            wanted = [Wanted(p.text, draw("recap_dit", style, p.key) >> 1, float(guidance)) for p in asked]
            images = sampler.draw(wanted).numpy()
            np.save(out / f"{style}-{guidance}.npy", images)
            judged = [judge(image, prompt.truth) for image, prompt in zip(images, asked, strict=True)]
            found["hits"][f"{style}@{guidance}"] = {a: [j[a] for j in judged] for a in ATTRIBUTES}
    return found


# --- the report -----------------------------------------------------------------------------------


def table(arm: dict[str, Any], style: str, attribute: str, guidance: float) -> np.ndarray:
    return 100 * np.array(arm["hits"][f"{style}@{guidance}"][attribute])


def report(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """Means over seeds (range) of every arm, style and attribute, and the primary differences."""
    guidance = study["sampling"]["primary_guidance"]
    columns = [(style, attribute) for style in STYLES for attribute in ATTRIBUTES]
    means = {
        name: [
            [float(np.nanmean(table(r, *column, guidance))) for r in results if r["arm"] == name] for column in columns
        ]
        for name in dict.fromkeys(arm.name for arm in plan(study))
    }
    found = [
        (primary, f"{primary['style']}, {primary['attribute']}", difference(primary, study, results))
        for primary in study["primary"]
    ]
    lines = [*table_of_arms([f"{style}: {attribute}" for style, attribute in columns], means), ""]
    lines += [f"- {line}" for line in verdicts(found)]
    lines += ["", "Guidance (mean over seeds of `side`):", "", *_by_guidance(study, results)]
    lines += ["", f"CPU: {sum(r['cpu_s'] for r in results) / 60:.0f} minutes for {len(results)} arms"]
    return "\n".join(lines)


def difference(
    primary: dict[str, Any], study: dict[str, Any], results: Sequence[dict[str, Any]]
) -> tuple[float, float, float, float]:
    """As `bootstrap`, of a primary contrast: paired by seed and prompt."""
    by = {(r["arm"], r["seed"]): r for r in results}
    of = (primary["style"], primary["attribute"], study["sampling"]["primary_guidance"])
    rows = [
        table(by[primary["better"], s], *of) - table(by[primary["worse"], s], *of) for s in paired_seeds(primary, by)
    ]
    return bootstrap(np.array(rows))


def _by_guidance(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[str]:
    scales = study["sampling"]["guidance"]
    lines = ["| | " + " | ".join(f"{style} at {g:g}" for style in STYLES for g in scales) + " |"]
    lines.append("|---|" + "---|" * (len(STYLES) * len(scales)))
    for name in dict.fromkeys(arm.name for arm in plan(study)):
        runs = [r for r in results if r["arm"] == name]
        cells = [f"{np.mean([table(r, s, 'side', g).mean() for r in runs]):.1f}" for s in STYLES for g in scales]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def picture(study: dict[str, Any], out: Path, seed: int) -> Image.Image:
    """Truths of ten prompts a style, and what each arm drew for them."""
    guidance, shown, scale = study["sampling"]["primary_guidance"], 10, 4
    hidden = unseen(list(flags()), study["world"]["unseen"], study["world"]["seed"])
    asked = prompts(hidden, study["sampling"]["scenes"])
    arms = list(dict.fromkeys(arm.name for arm in plan(study)))
    cell, label = SIDE * scale + 4, 90
    sheet = Image.new("RGB", (label + shown * cell, (len(arms) + 1) * len(STYLES) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for block, style in enumerate(STYLES):
        step = max(len(asked[style]) // shown, 1)
        rows = [("truth", [PALETTE[np.clip(p.truth, 0, None)] for p in asked[style][::step][:shown]])]
        for arm in arms:
            images = np.load(out / "runs" / f"{arm}-{seed}" / f"{style}-{guidance}.npy")
            rows.append((arm, list(images[::step][:shown])))
        for row, (name, images) in enumerate(rows):
            top = (block * (len(arms) + 1) + row) * cell
            pen.text((4, top + cell // 2 - 6), f"{style}\n{name}", fill="black")
            for column, image in enumerate(images):
                tile = Image.fromarray(image.astype(np.uint8)).resize((SIDE * scale,) * 2, Image.Resampling.NEAREST)
                sheet.paste(tile, (label + column * cell, top))
    return sheet


def plot(study: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """An SVG: `side` over p for each style of prompt."""
    guidance, lines = study["sampling"]["primary_guidance"], []
    for (style, told), colour in zip(STYLES.items(), ("#c0392b", "#1b6ca8", "#7d8a2e"), strict=True):
        over_p = {
            p: [float(table(r, style, "side", guidance).mean()) for r in results if r["arm"] == f"p={p:g}"]
            for p in study["arms"]["p"]
        }
        lines.append((f"{told}: every colour where it belongs (%)", colour, over_p))
    return figure(study["arms"]["p"], lines)


def validate(world: Path) -> str:
    """What the checker says of the test views of real flags: of their own flag, and of another one, drawn at random."""
    truths = {code: truth_of(image) for code, (image, _) in flags().items()}
    rng, right, wrong = random.Random(0), [], []
    for tar in sorted((world / "test").glob("*.tar")):
        with tar.open("rb") as file:
            for sample in read_samples(file):
                assert isinstance(sample, Sample)
                code = sample.members["cls"].decode()
                view = Image.open(io.BytesIO(sample.members["jpg"])).convert("RGB")
                pixels = np.asarray(view.resize((SIDE, SIDE), Image.Resampling.BOX))
                other = rng.choice([known for known in sorted(truths) if known != code])
                right.append([judge(pixels, truths[code])[a] for a in ATTRIBUTES])
                wrong.append([judge(pixels, truths[other])[a] for a in ATTRIBUTES])
    lines = [f"{len(right)} views, percent judged to be right: {', '.join(ATTRIBUTES)}"]
    for name, found in (("their own flag", right), ("another flag", wrong)):
        lines.append(f"{name}: " + ", ".join(f"{100 * share:.1f}" for share in np.nanmean(found, 0)))
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, HERE / "recap_dit.yaml", "p=P/SEED, e.g. p=0.5/2")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--picture", type=Path, help="write images of all arms of seed 0 here")
    given = parser.parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results = given.out / "world", given.out / "results"
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(float(name.removeprefix("p=")), "recap", int(seed))
        made = train(arm, study, world, given.out / "runs" / f"{arm.name}-{arm.seed}")
        save(results, arm, made)
        return
    if given.validate:
        prepare(study, world)
        sys.stdout.write(validate(world) + "\n")
        return
    if not given.report:
        prepare(study, world)
        run_missing(plan(study), results, given, "benchmarks.studies.recap_dit")
    found = load(results, plan(study))
    names = list(dict.fromkeys(arm.name for arm in plan(study)))
    sys.stdout.write(report(study, found) + "\n\nloss over training\n" + curves(names, found, 3) + "\n")
    if given.plot:
        given.plot.write_text(plot(study, found))
    if given.picture:
        picture(study, given.out, 0).save(given.picture)


if __name__ == "__main__":
    main()
