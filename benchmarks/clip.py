"""CLIP training beside open_clip's, on the same machine, data, model and batch: interleaved, median and range.

    python -m benchmarks.clip                                          all three on a CPU, some minutes
    python -m benchmarks.clip loader [--images 1024] [--repeats 9]     images/s/core of the input pipeline at 112 px
    python -m benchmarks.clip step [--batch 16] [--repeats 9]          one training step, CPU or GPU
    python -m benchmarks.clip step --vision B --text base --image 224 --batch 512 --compile ours     on a GPU; then both
    python -m benchmarks.clip memory [--rows 8192] [--columns 65536]   peak memory of the loss, plain and streamed

`--check` exits 1 where a target is missed: 2x the loader's rate; 1x the step's on a CPU, on a GPU 1.3x the eager one,
1.1x the compiled one and an MFU of 40 %; less memory streamed than plain.

`loader` and `step` want open_clip and the webdataset that it pins (its loader fails with webdataset 1.0):

    pip install --no-deps open_clip_torch timm torchvision ftfy wcwidth webdataset==0.2.86

Images are synthetic, of a photograph's size and compressibility; rates are per second of CPU time: cores are shared.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import recap.torchvision_shim  # noqa: F401 - before transformers
from hpc.base.errors import Parser
from recap import device as gpu
from recap.clip.objective import Objective
from recap.clip.settings import OPENAI, ClipConfig, ClipModelConfig, LossConfig, Stage
from recap.clip.task import ClipTask
from recap.clip.weights import build
from recap.data.column import ColumnConfig
from recap.data.images import EncodedImage
from recap.data.samples import JoinedDataConfig
from recap.data.shrink import shrunk
from recap.text_policy import TextPolicyConfig
from recap.train.parallel import peak_flops
from recap.train.settings import TrainSettings

SIDE, CONTEXT = 112, 77


def open_clip() -> Any:
    import open_clip

    return open_clip


def compare(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Rates of both, measured as A B B A; the ratio of neighbours."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        for name, run in [("ours", ours), ("theirs", theirs)][:: 1 if repeat % 2 == 0 else -1]:
            found[name].append(run())
    ratios = [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]
    out: dict[str, Any] = {name: spread(values) for name, values in found.items()}
    return out | {"ratio": spread(ratios)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


# --- the input pipeline ---------------------------------------------------------------------------


def photograph(rng: np.random.Generator, width: int = 640, height: int = 512) -> bytes:
    """A JPEG with a photograph's spectrum: noise that falls off with frequency."""
    image = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(1, 8):
        size = (2**octave, 2**octave * height // width + 1)
        layer = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        image += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 2**octave
    out = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def corpus(folder: Path, images: int) -> list[str]:
    """Tars of 512 samples, and the same ones shrunk to 128 px; texts of 50 words."""
    from recap.worlds.tars import write_tar

    rng = np.random.default_rng(0)
    pictures = [photograph(rng) for _ in range(64)]
    vocabulary = "a photo of the red car with blue sky and green trees near old houses where people walk"
    words = vocabulary.split()
    for name in ("large", "small"):
        (folder / name).mkdir()
        shown = pictures if name == "large" else [shrunk(EncodedImage(p), 128, 90) for p in pictures]
        for shard in range(max(images // 512, 1)):
            made = [
                (f"{shard:05d}{i:04d}", {"jpg": shown[i % 64], "txt": " ".join(rng.choice(words, 50)).encode()})
                for i in range(512)
            ]
            with (folder / name / f"{shard:05d}.tar").open("wb") as file:
                write_tar(file, made)
    return sorted(str(p) for p in (folder / "large").glob("*.tar"))


def clip_tokenizer(folder: Path, simple: Any) -> str:
    """open_clip's BPE as a fast tokenizer."""
    from transformers import CLIPTokenizerFast

    merges = [tuple(pair) for pair in simple.bpe_ranks]
    named = {"bos_token": "<start_of_text>", **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<end_of_text>")}
    fast = CLIPTokenizerFast(vocab=dict(simple.encoder), merges=merges, **named)
    fast.save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def loader(images: int, repeats: int, batch: int = 128) -> dict[str, Any]:
    peer = open_clip()
    from open_clip_train.data import get_wds_dataset

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tars = corpus(folder, images)
        simple = peer.tokenizer.SimpleTokenizer(context_length=CONTEXT)
        words = clip_tokenizer(folder, simple)
        transform = peer.transform.image_transform(SIDE, is_train=True, aug_cfg={"scale": (0.4, 1.0)})
        total = len(tars) * 512 // batch * batch

        def theirs() -> float:
            arguments = SimpleNamespace(
                train_data=str(folder / "large" / f"{{00000..{len(tars) - 1:05d}}}.tar"), train_num_samples=total,
                train_data_upsampling_factors=None, dataset_resampled=False, seed=0, workers=0, batch_size=batch,
                world_size=1,
            )  # fmt: skip
            data = get_wds_dataset(arguments, transform, True, tokenizer=simple).dataloader
            began = time.process_time()
            seen = sum(len(pixels) for pixels, _ in data)
            return seen / (time.process_time() - began)

        def ours(part: str) -> Callable[[], float]:
            config = ClipConfig(
                model=ClipModelConfig(architecture="hf", context=CONTEXT, vocabulary=49408, tokenizer=words),
                data=JoinedDataConfig(
                    shards=[str(folder / part)], columns={"text": ColumnConfig(member="txt")}, streams=8, decoders=1
                ),
                text=TextPolicyConfig(weights={"text": 1.0}),
                stages=[Stage(image=SIDE)],
                train=TrainSettings(batch=batch),
            )
            task = ClipTask(config, 0, None, "")

            def run() -> float:
                began = time.process_time()
                seen = sum(task.batch(first, batch, 0, 1).weight for first in range(0, total, batch))
                task.close()
                return seen / (time.process_time() - began)

            return run

        result = {"images_per_s_per_core": compare(ours("large"), theirs, repeats)}
        small = ours("small")
        result["shrunk_images_per_s_per_core"] = spread([small() for _ in range(repeats)])
        gained = result["shrunk_images_per_s_per_core"]["median"] / result["images_per_s_per_core"]["ours"]["median"]
        return result | {"shrinking_gains": gained}


# --- the training step ----------------------------------------------------------------------------


def inputs(batch: int, image: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 pixels [N, 3, side, side] and tokens [N, 1, context], in pinned memory for a GPU."""
    pixels = torch.randint(0, 256, (batch, 3, image, image), dtype=torch.uint8)
    ids = torch.randint(1, 49000, (batch, 1, CONTEXT))
    ids[:, :, -1] = 49407
    return (pixels.pin_memory(), ids.pin_memory()) if device == "cuda" else (pixels, ids)


def our_step(vision: str, text: str, image: int, batch: int, device: str) -> tuple[Callable[[], None], Any]:
    """A training step of ours from pixels on the host, and the model in it."""
    config = ClipModelConfig(architecture="hf", vision=vision, text=text, context=CONTEXT, vocabulary=49408)
    torch.manual_seed(0)
    module = Objective(build(config, image, 49407), LossConfig(), *OPENAI).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=device == "cuda")
    pixels, ids = inputs(batch, image, device)

    def step() -> None:
        micro = {"images": pixels.to(device, non_blocking=True), "ids": ids.to(device, non_blocking=True)}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = module(micro) / batch
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, module.model


def step(batch: int, repeats: int, vision: str, text: str, image: int, compiled: str) -> dict[str, Any]:
    """Forward, loss, backward, AdamW: ours on uint8 pixels, theirs as in open_clip_train.train.

    compiled: none | ours | both; ours block by block, as `train.compile` does, theirs whole, as `--torchcompile` does.
    """
    peer = open_clip()
    device = gpu.best()
    ours, ours_model = our_step(vision, text, image, batch, device)
    config = ClipModelConfig(architecture="hf", vision=vision, text=text, context=CONTEXT, vocabulary=49408)
    v, t = config.vision_tower, config.text_tower
    model = peer.model.CLIP(
        config.dimension,
        {"image_size": image, "layers": v.layers, "width": v.width, "head_width": v.width // v.heads, "patch_size": 16},
        {"context_length": CONTEXT, "vocab_size": 49408, "width": t.width, "heads": t.heads, "layers": t.layers},
        output_dict=True,
    ).to(device)
    loss_of = peer.loss.ClipLoss(local_loss=True, gather_with_grad=True)
    their_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    pixels, ids = inputs(batch, image, device)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in OPENAI)
    floats = (pixels.float() / 255 - mean) / std  # as their loader's workers make them
    floats = floats.pin_memory() if device == "cuda" else floats

    def timed(run: Callable[[], None]) -> Callable[[], float]:
        def once() -> float:
            if device == "cuda":
                torch.cuda.synchronize()
            clock = time.perf_counter if device == "cuda" else time.process_time
            began, count = clock(), 20 if device == "cuda" else 2
            for _ in range(count):
                run()
            if device == "cuda":
                torch.cuda.synchronize()
            return count * batch / (clock() - began)

        once()
        return once

    def theirs() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(**model(floats.to(device, non_blocking=True), ids[:, 0].to(device, non_blocking=True)))
        their_optimizer.zero_grad()
        loss.backward()
        their_optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    with FlopCounterMode(display=False) as counter:  # before anything is compiled: it sees operators only
        ours()
    if compiled != "none":
        for block in ours_model.blocks():
            block.compile()
    if compiled == "both":
        model.compile()
    found = compare(timed(ours), timed(theirs), repeats)
    flops = counter.get_total_flops() / batch
    result = {"device": device, "compiled": compiled, "samples_per_s": found, "gflop_per_sample": flops / 1e9}
    if peak := peak_flops(torch.device(device)):
        result["mfu"] = {name: found[name]["median"] * flops / peak for name in ("ours", "theirs")}
    return result


# --- memory of the loss ---------------------------------------------------------------------------

_MEASURE = """
import sys, torch
from recap.clip.losses import cross_entropy
rows, columns, stream = (int(a) for a in sys.argv[1:])
def memory(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) / 1024
torch.set_num_threads(1)
torch.manual_seed(0)
a, b = (torch.nn.functional.normalize(torch.randn(n, 512), dim=-1).requires_grad_() for n in (rows, columns))
before = memory("VmRSS")
loss = cross_entropy(a, b, torch.tensor(14.0), torch.arange(rows), stream)
loss.backward()
print(memory("VmHWM") - before, loss.item() / rows, a.grad.norm().item())
"""


def memory(rows: int, columns: int, stream: int = 1024) -> dict[str, Any]:
    """MiB above the features, forward and backward, of one direction of the loss on this rank's rows."""
    out = {}
    for name, width in (("plain", 0), ("streamed", stream)):
        command = [sys.executable, "-c", _MEASURE, str(rows), str(columns), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        out[name] = dict(zip(("mib", "loss", "gradient"), map(float, done), strict=True))
    return {"rows": rows, "columns": columns, **out}


def lines(what: str, result: dict[str, Any]) -> list[str]:
    """A result for people: ours, theirs, the ratio; median (least to most)."""
    if what == "memory":
        plain, streamed = (result[name]["mib"] for name in ("plain", "streamed"))
        rows, columns = result["rows"], result["columns"]
        told = f"{streamed:,.0f} MiB streamed, {plain:,.0f} MiB plain: {plain / streamed:.1f}x less"
        return [f"memory of the loss at {rows:,} x {columns:,}: {told}"]
    name = "images_per_s_per_core" if what == "loader" else "samples_per_s"
    ours, theirs, ratio = (result[name][side] for side in ("ours", "theirs", "ratio"))
    spread_ = f"{ratio['least']:.2f} to {ratio['most']:.2f}"
    unit = name.replace("_per_", "/")
    told = f"{ours['median']:.0f} {unit}, open_clip {theirs['median']:.0f}: {ratio['median']:.2f}x ({spread_})"
    out = [f"{'input pipeline' if what == 'loader' else 'training step'}: {told}"]
    if what == "loader":
        out.append(f"on shrunk shards: {result['shrunk_images_per_s_per_core']['median']:.0f} {unit}, "
                   f"{result['shrinking_gains']:.2f}x")  # fmt: skip
    if "mfu" in result:
        out.append(f"MFU: ours {result['mfu']['ours']:.0%}, open_clip {result['mfu']['theirs']:.0%}")
    return out


def missed(what: str, result: dict[str, Any]) -> list[str]:
    """The targets that a result does not reach."""
    if what == "memory":
        good = {"less memory streamed than plain": result["streamed"]["mib"] < result["plain"]["mib"]}
    elif what == "loader":
        ratio = result["images_per_s_per_core"]["ratio"]["median"]
        good = {f"2x open_clip's loader ({ratio:.2f})": ratio >= 2}
    else:
        ratio = result["samples_per_s"]["ratio"]["median"]
        wanted = 1.0 if result["device"] == "cpu" else 1.1 if result["compiled"] == "both" else 1.3
        good = {f"{wanted}x open_clip's step ({ratio:.2f})": ratio >= wanted}
        if "mfu" in result:
            good[f"an MFU of 40 % ({result['mfu']['ours']:.0%})"] = result["mfu"]["ours"] >= 0.4
    return [target for target, reached in good.items() if not reached]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("what", nargs="*", metavar="PART", help="loader, step, memory (default: all of them)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image", type=int, default=112)
    parser.add_argument("--vision", default="192x6x3", help="S | B | L | H or WIDTHxLAYERSxHEADS; heads of 64")
    parser.add_argument("--text", default="192x6x3")
    parser.add_argument("--compile", choices=["none", "ours", "both"], default="none", help="whose step is compiled")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--columns", type=int, default=65536)
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "loader": lambda: loader(given.images, given.repeats),
        "step": lambda: step(given.batch, given.repeats, given.vision, given.text, given.image, given.compile),
        "memory": lambda: memory(given.rows, given.columns),
    }
    if unknown := set(given.what) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(parts)}")
    results, targets = {}, []
    for what in given.what or parts:
        results[what] = parts[what]()
        targets += missed(what, results[what])
        sys.stdout.write("\n".join(lines(what, results[what])) + "\n")
        sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    for target in targets:
        sys.stdout.write(f"missed: {target}\n")
    if given.check and targets:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
