"""What recaptions bring to a text-to-image DiT: arms of the mixing weight p, trained with our trainer on our captions.

    python -m benchmarks.recap_dit OUT [--jobs 2] [--only p=0.5/2]       train what is not done yet, then report
    python -m benchmarks.recap_dit OUT --report                          the table alone

What is asked, and what would falsify it, stands in recap_dit.yaml, written before the run. Arms of one seed share
initial weights, images, order, noise and times; only the texts differ, and all cost the same. Images of all arms are
drawn from the same noise, with the same guidance.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.recap_clip import Alone, Arm
from benchmarks.recap_dit_world import ATTRIBUTES, judge, prompts

HERE = Path(__file__).parent


def plan(study: dict[str, Any]) -> list[Arm]:
    return [Arm(p, "recap", seed) for seed in study["arms"]["seeds"] for p in study["arms"]["p"]]


# --- the world and the text encoder ---------------------------------------------------------------


def prepare(study: dict[str, Any], world: Path) -> None:
    """Tars, recaptions by our caption job, a tokenizer, and the frozen text encoder."""
    if not (world / "captions").exists():
        from benchmarks.recap_clip_world import build

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
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from benchmarks.recap_clip_world import BOILERPLATE, captions, descriptions, flags

    names = [f"flag of {name} national" for _, name in flags().values()]
    grammar = [prompt.text for prompt in prompts(set(), 2000)["scenes"]]
    texts = [*captions(world, "train").values(), *descriptions().values(), *names, *BOILERPLATE, *grammar]
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts if text for word, _ in splitter.pre_tokenize_str(text.lower())})
    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, "<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), splitter
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.save_pretrained(world / "tokenizer-clip")


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
    seconds = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu_s"] = round(seconds.ru_utime + seconds.ru_stime, 1)
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
    from benchmarks.recap_clip_world import flags, unseen
    from recap.dit.export import read
    from recap.dit.sampling import Sampler, Wanted, scheduler_of
    from recap.dit.vae import Pixels
    from recap.train.order import draw

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
            judged = [judge(image, prompt.truth) for image, prompt in zip(images, asked)]
            found["hits"][f"{style}@{guidance}"] = {a: [j[a] for j in judged] for a in ATTRIBUTES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, default=HERE / "recap_dit.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="arms at the same time")
    parser.add_argument("--only", help="train this arm alone: p=P/SEED, e.g. p=0.5/2")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", type=Path, help="write the figure here")
    given = parser.parse_args()
    study = yaml.safe_load(given.study.read_text())
    world, results = given.out / "world", given.out / "results"
    if given.only:
        name, _, seed = given.only.rpartition("/")
        arm = Arm(float(name.removeprefix("p=")), "recap", int(seed))
        made = train(arm, study, world, given.out / "runs" / f"{arm.name}-{arm.seed}")
        results.mkdir(exist_ok=True)
        (results / arm.file).write_text(json.dumps(made))
        return


if __name__ == "__main__":
    main()
