"""The time model of captioning on a GPU: stage by stage the bound, what is expected, and what was measured.

    python -m benchmarks.roofline --rates stated                        before any GPU has run it
    python -m benchmarks.roofline --rates benchmarks/results/gpu.json   with a device's own rates; truth beside it

Launches, bytes and FLOP are counted from the engine's own passes on fake CUDA tensors (benchmarks/pass_counts.py), its
schedule is played through (refills.py), its rates stand in one table (efficiencies.py). Where the slow end of the
expectation is under the aim, the next rungs are named with what each would bring. No GPU is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks.caption_work import LLAMA3_8B, MAX_TOKENS, steady_rate
from benchmarks.efficiencies import PEAK_BF16, PEAK_BYTES, PEAK_FP8, STATED, Rate, measured_rates
from benchmarks.image_cost import ImageCost, bound, cost
from benchmarks.pass_counts import Counts, count_passes
from benchmarks.random_captioner import Shape
from benchmarks.refills import turns
from benchmarks.timing import say
from hpc.base.errors import Parser

PREFIX, SUFFIX = 10, 15  # tokens of the prompt before and after the image
AIM = {"bf16": 65.0, "fp8+kv": 100.0}
PASSES = ("vision", "prefill", "step")


@dataclass(frozen=True)
class Scene:
    """What is modelled: a model's shape, the engine's precision and batch sizes, the captions' lengths in tokens."""

    shape: Shape
    precision: str
    slots: int
    micro_batch: int
    lengths: list[int]

    @property
    def prompt(self) -> int:
        return PREFIX + (self.shape.image // self.shape.patch) ** 2 + SUFFIX

    @property
    def tokens(self) -> float:
        return float(np.mean(self.lengths))

    @property
    def dim(self) -> int:
        return self.shape.head_dim or self.shape.hidden // self.shape.heads

    def cost(self) -> ImageCost:
        sizes = {"bf16": (2, 2), "fp8": (1, 2), "fp8+kv": (1, 1)}[self.precision]
        return cost(self.shape, self.prompt, PREFIX, self.tokens, *sizes)

    def attention_flop(self) -> float:
        """Of one layer's causal attention over a micro-batch."""
        pairs = (self.prompt**2 - PREFIX**2) / 2
        return 4 * self.shape.heads * self.dim * pairs * self.micro_batch

    def live_bytes(self) -> float:
        """Keys and values that one decode step reads, with all slots half way through their captions."""
        one = self.cost().cache / (self.tokens - 1)
        return one * self.slots


Part = tuple[str, str, float]  # (what it is, the rate that it runs at, FLOP, bytes or launches)


def parts(scene: Scene, name: str, counts: Counts) -> Iterator[Part]:
    """The work of one pass, each part with the rate that it runs at."""
    fp8 = "fp8" if scene.precision != "bf16" else "bf16"
    head = 2 * scene.shape.hidden * scene.shape.vocabulary * (scene.slots if name == "step" else scene.micro_batch)
    head = head if name != "vision" else 0
    products = sum(flop for key, flop in counts.flop.items() if not key.startswith("scaled_dot")) - head
    yield "matrices", f"{name} matrices" + f" {fp8}" * (name != "vision"), products
    if head:
        yield "head", "head", head
    if name == "vision":
        dense = sum(flop for key, flop in counts.flop.items() if key.startswith("scaled_dot"))
        yield "attention", "vision attention", dense
    elif name == "prefill":
        yield "attention", "prefill attention", scene.attention_flop() * (scene.shape.layers - 1)
    else:
        yield "attention", "decode attention", scene.live_bytes()
        yield "gaps", "gap", counts.launches.total()
    for key, moved in counts.moved.items():
        if not counts.flop[key] and "attention" not in key:
            kernel = key.removeprefix("triton _").removesuffix("_kernel")
            yield f"elementwise: {kernel}" if "triton" in key else "elementwise: other", kernel, moved


def times(scene: Scene, name: str, counts: Counts, rates: dict[str, Rate]) -> dict[str, tuple[float, float]]:
    """Milliseconds of each part of a pass: (fast end, slow end)."""
    found: dict[str, tuple[float, float]] = {}
    for what, key, amount in parts(scene, name, counts):
        rate, before = rates.get(key, rates["elementwise"]), found.get(what, (0.0, 0.0))
        found[what] = (before[0] + amount / rate.high * 1e3, before[1] + amount / rate.low * 1e3)
    return found


def rate(scene: Scene, fill_ms: float, step_ms: float) -> tuple[float, float | None]:
    """Images/s of the whole run, its start and drain included, and between full slots (None: too short a run)."""
    played = turns(scene.lengths, scene.slots, scene.micro_batch, fill_ms / 1e3, step_ms / 1e3)
    return len(scene.lengths) / played[-1].clock, steady_rate(played, scene.slots, len(scene.lengths))


@dataclass(frozen=True)
class Expectation:
    """Of one precision. passes: milliseconds of each part of each pass, (fast end, slow end)."""

    scene: Scene
    counts: dict[str, Counts]
    passes: dict[str, dict[str, tuple[float, float]]]

    def total(self, name: str, end: int) -> float:
        return sum(part[end] for part in self.passes[name].values())

    def rate(self, end: int, saved_fill_ms: float = 0.0, saved_step_ms: float = 0.0) -> tuple[float, float | None]:
        fill = self.total("vision", end) + self.total("prefill", end) - saved_fill_ms
        return rate(self.scene, fill, self.total("step", end) - saved_step_ms)


def expect(scene: Scene, report: dict[str, Any] | None) -> Expectation:
    """report: of benchmarks.gpu, whose rates replace the stated ones."""
    rates = STATED
    if report:
        rates = measured_rates(report, scene.precision, scene.slots, scene.attention_flop())
    counts = count_passes(scene.shape, scene.micro_batch, scene.slots, scene.precision)
    return Expectation(scene, counts, {name: times(scene, name, counts[name], rates) for name in PASSES})


@dataclass(frozen=True)
class Rung:
    """A change to the engine that is not made.

    Attributes:
        gain: share by which it would raise the whole run's rate, at the slow end of the expectation.
        remark: what speaks against it, or has to hold for it.
    """

    name: str
    gain: float
    remark: str


def rungs(found: Expectation) -> list[Rung]:
    """The changes that are open, the one that brings most first."""
    scene, fill, step = found.scene, found.passes["prefill"], found.passes["step"]

    def part(name: str, share: float) -> tuple[float, float]:
        return tuple(share * passes.get(f"elementwise: {name}", (0, 0))[1] for passes in (fill, step))  # type: ignore[return-value]

    def gain(fill_ms: float, step_ms: float) -> float:
        return found.rate(1, fill_ms, step_ms)[0] / found.rate(1)[0] - 1

    bf16 = scene.precision == "bf16"
    gaps = step["gaps"][1] * scene.shape.layers / found.counts["step"].launches.total()  # one launch less a layer
    quantised = part("quantise", 2 / 3)  # two of three bytes: what it reads would still be in the cache
    swiglu = part("swiglu", 1.0)
    return sorted([
        Rung("SwiGLU in the epilogue of gate-up", gain(swiglu[0], swiglu[1] + gaps),
             "if a product of our own were as fast as the library's"),
        Rung("residual added by the product before it", gain(*part("add_rms_norm", bf16 / 4)), "fp8 takes no addend"),
        Rung("quantisation behind attention", gain(quantised[0], quantised[1] + (0 if bf16 else gaps)),
             "its scale needs all heads of a row, which are several programs"),
        Rung("decode rows joined to the prefill's matrices", gain(0, joined_step_saving_ms(found)),
             "a row's bits would depend on whether a fill ran beside its step"),
        Rung("decode on a second stream", 0.0, "measured: 820 ms one after another, 820 ms side by side"),
        Rung("refill in groups of half the size", half_fill_gain(found), "if the prefill's products kept their rate"),
        Rung("pinned ring", 0.0, "the host copies pixels while a step is queued"),
    ], key=lambda rung: -rung.gain)  # fmt: skip


def joined_step_saving_ms(found: Expectation) -> float:
    """Milliseconds off each step if one step of every fill ran its matrices at the rate of the prefill's."""
    spent = {name: found.passes[name]["matrices"][1] for name in PASSES}
    flop = {name: found.counts[name].flop.total() for name in PASSES}
    faster = max(0.0, 1 - spent["prefill"] / flop["prefill"] * flop["step"] / spent["step"])
    scene = found.scene
    steps = len(turns(scene.lengths, scene.slots, scene.micro_batch, 1, 1))
    return spent["step"] * faster * -(-len(scene.lengths) // scene.micro_batch) / steps


def half_fill_gain(found: Expectation) -> float:
    """Gain of the whole run if a fill took half as many images in half the time."""
    scene = replace(found.scene, micro_batch=found.scene.micro_batch // 2)
    fill = (found.total("vision", 1) + found.total("prefill", 1)) / 2
    return rate(scene, fill, found.total("step", 1))[0] / found.rate(1)[0] - 1


def measured_values(report: dict[str, Any] | None, precision: str) -> dict[str, float]:
    """The numbers that a report has of a precision; empty where it has none."""
    stage = report["stages"].get(precision, {}) if report else {}
    return {key: value for key, value in stage.items() if isinstance(value, float)}


def show(found: Expectation, report: dict[str, Any] | None) -> None:
    scene, seen = found.scene, measured_values(report, found.scene.precision)
    say(f"\n## {scene.precision}: {scene.micro_batch} images a fill, {scene.slots} slots, {len(scene.lengths)} images "
        f"of {scene.tokens:.1f} tokens, prompt {scene.prompt}\n")  # fmt: skip
    fast = PEAK_FP8 if "fp8" in scene.precision else PEAK_BF16
    most, stages = bound(scene.cost(), scene.tokens, scene.slots, fast, PEAK_BF16, PEAK_BYTES)
    say("| a pass, ms | launches | expected, computed | measured |\n|---|---|---|---|")
    for name in PASSES:
        for what, ends in found.passes[name].items():
            say(f"| {name}: {what} | | {span(*ends)} | |")
        measured = f"{seen[f'{name}, ms']:.2f}" if f"{name}, ms" in seen else "-"
        spent = span(found.total(name, 0), found.total(name, 1))
        say(f"| **{name}** | {found.counts[name].launches.total()} | **{spent}** | {measured} |")
    (fastest, at_most), (slowest, at_least) = found.rate(0), found.rate(1)
    say("\n| images/s | bound at the stated peaks | expected, computed | measured |\n|---|---|---|---|")
    told = [f"{seen[key]:.1f}" if key in seen else "-" for key in ("images/s", "images/s between full slots")]
    bounds = ", ".join(f"{name} {spent * 1e3:.2f}" for name, spent in stages.items())
    say(f"| whole run, start and drain included | | {span(slowest, fastest)} | {told[0]} |")
    if at_least and at_most:
        say(f"| between full slots | {most:.1f} | {span(at_least, at_most)} | {told[1]} |")
    say(f"\nBound, ms an image: {bounds}.")
    show_rungs(found, at_least or slowest)


def show_rungs(found: Expectation, low: float) -> None:
    aim = AIM.get(found.scene.precision)
    if aim is None:
        return
    say(f"The aim is {aim:.0f} images/s; the slow end is {low:.1f}{'.' if low >= aim else ', under it. Next rungs:'}")
    for rung in rungs(found) if low < aim else []:
        say(f"- {rung.name}: {rung.gain:+.1%}, to {low * (1 + rung.gain):.1f} ({rung.remark})")


def span(first: float, last: float) -> str:
    """The two ends of an expectation; one number where a measurement left no range."""
    return f"{first:.2f}" if abs(last - first) < 0.005 else f"{first:.2f} to {last:.2f}"


def caption_lengths(images: int) -> list[int]:
    """The forced lengths of benchmarks/caption_work.py."""
    noise = np.random.default_rng(0)
    noise.integers(10, 300, PREFIX + SUFFIX)
    return np.clip(np.round(noise.lognormal(np.log(56), 0.40, images)), 8, MAX_TOKENS).astype(int).tolist()


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--rates", default="stated", help="`stated`, or a report of benchmarks.gpu (gpu.json)")
    parser.add_argument("--precisions", default="bf16,fp8,fp8+kv", help="separated by commas")
    parser.add_argument("--slots", type=int, default=512, help="captions at a time")
    parser.add_argument("--micro-batch", type=int, default=32, help="images in a fill")
    parser.add_argument("--images", type=int, default=2304, help="images in the run")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    report = None if options.rates == "stated" else json.loads(Path(options.rates).read_text())
    shape = Shape(**report["shape"]) if report else LLAMA3_8B
    lengths = caption_lengths(options.images)
    say(f"rates: {options.rates}" + (f", {report['stages']['rates']['device']}, {report['date']}" if report else ""))
    for precision in options.precisions.split(","):
        scene = Scene(shape, precision, options.slots, options.micro_batch, lengths)
        show(expect(scene, report), report)


if __name__ == "__main__":
    main()
