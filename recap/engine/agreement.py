"""How far a cheaper precision (fp8 weights, fp8 keys and values) changes the captions of your images.

    python -m recap.engine.agreement MODEL IMAGES... [--precision fp8] [--kv-precision fp8] [--count 256]

IMAGES are tars or image files. Both precisions caption them freely, and are then fed the same tokens (those of the full
precision), which separates a changed score from what greedy decoding makes of it.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc.base.errors import Parser
from recap import device as gpu
from recap.engine.decode import decode
from recap.engine.generator import Image, Text
from recap.engine.interface import Caption, Engine, Request
from recap.engine.native import NativeEngine
from recap.engine.settings import CaptionerConfig


@dataclass(frozen=True)
class Agreement:
    """Of `images` captions by both precisions.

    identical: share of equal captions.
    equal_words: mean share of a caption's words before the first difference.
    top1: share of positions whose best token is the same, given the same tokens before.
    divergence, divergence_p99: Kullback-Leibler divergence of the next token's distribution, nats, mean and 99 %.
    """

    images: int
    identical: float
    equal_words: float
    top1: float
    divergence: float
    divergence_p99: float


def compare(config: CaptionerConfig, other: CaptionerConfig, images: Sequence[bytes], device: str) -> Agreement:
    """Caption `images` under both settings. Images that cannot be decoded are left out."""
    engines = [NativeEngine(settings, device) for settings in (config, other)]
    try:
        requests = [Request(i, image, key=str(i)) for i, image in enumerate(images)]
        ours, theirs = (_caption_all(engine, requests) for engine in engines)
        good = [i for i in ours if not ours[i].reason and not theirs[i].reason]
        if not good:
            raise ValueError("None of the images could be decoded: nothing to compare. Give other images.")
        same, divergence = _forced(engines[0], engines[1], [images[i] for i in good])
    finally:
        for engine in engines:
            engine.close()
    return Agreement(
        images=len(good),
        identical=float(np.mean([ours[i].text == theirs[i].text for i in good])),
        equal_words=float(np.mean([_equal_share(ours[i].text.split(), theirs[i].text.split()) for i in good])),
        top1=float(same.mean()),
        divergence=float(divergence.mean()),
        divergence_p99=float(np.quantile(divergence, 0.99)),
    )


def _caption_all(engine: Engine, requests: list[Request]) -> dict[int, Caption]:
    found: dict[int, Caption] = {}
    todo = list(reversed(requests))
    while len(found) < len(requests):
        while todo and engine.want() > 0:
            engine.put(todo.pop())
        found.update({caption.id: caption for caption in engine.poll(0.1)})
    return found


def equal_start(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """How many words or tokens two texts share from their first on."""
    pairs = zip(ours, theirs, strict=False)  # one may be the longer
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def _equal_share(ours: list[str], theirs: list[str]) -> float:
    return equal_start(ours, theirs) / max(1, len(ours), len(theirs))


@torch.inference_mode()
def _forced(ours: NativeEngine, theirs: NativeEngine, images: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Per generated position, with our tokens fed to both: equal best token, and the divergence."""
    a, b = ours.generator, theirs.generator
    same, divergence = [], []
    prompt = ours.book.prompt(next(iter(ours.book.formats)))
    geometry, zeros = ours.checkpoint.geometry, torch.zeros(ours.config.max_tokens)
    for start in range(0, len(images), a.shapes.micro_batch):
        pixels = [decode(data, geometry) for data in images[start : start + a.shapes.micro_batch]]
        texts = [Text(None, prompt.ids, prompt.max_tokens, zeros) for _ in pixels]
        for generator in (a, b):
            generator.reset(replace(generator.shapes, shared=0, texts=1))
            generator.fill([Image(p, [t]) for p, t in zip(pixels, texts, strict=True)])  # type: ignore[list-item]
        slots = a.shapes.slots
        b.tokens.copy_(a.tokens)
        for _ in range(prompt.max_tokens - 1):
            if not a.active[:slots].any():
                break
            active = a.active[:slots].clone()
            wanted, found = (g.decoder.step(a.tokens[:slots], a.positions[:slots])[active].float() for g in (a, b))
            same.append((wanted.argmax(-1) == found.argmax(-1)).cpu().numpy())
            p, q = wanted.log_softmax(-1), found.log_softmax(-1)
            divergence.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu().numpy())
            a._advance()
    if not same:  # every caption ended with its first token
        return np.ones(1), np.zeros(1)
    return np.concatenate(same), np.concatenate(divergence)


def read_images(paths: Sequence[Path], count: int) -> Iterator[bytes]:
    """The first `count` images of tars and image files."""
    left = count
    for path in paths:
        if left <= 0:
            return
        if path.suffix != ".tar":
            yield path.read_bytes()
            left -= 1
            continue
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.lower().endswith(_SUFFIXES) else None
                if file is not None and left > 0:
                    yield file.read()
                    left -= 1


_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--precision", default="fp8", choices=["fp8", "bf16", "fp16"])
    parser.add_argument("--kv-precision", default="auto", choices=["auto", "fp8"])
    parser.add_argument("--device", default=gpu.best())
    parser.add_argument("--count", type=int, default=256)
    options = parser.parse_args()
    base = CaptionerConfig(model=options.model, slots=64, micro_batch=16)
    other = replace(base, precision=options.precision, kv_precision=options.kv_precision)
    found = compare(base, other, list(read_images(options.images, options.count)), options.device)
    sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
