"""The command of a benchmark of training: it runs its parts on one thread, prints their numbers, checks limits."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.timing import say
from hpc.base.errors import Parser

Part = Callable[[], Mapping[str, float]]
"""Measures something, and returns its numbers by name."""
Limits = Mapping[str, tuple[float, str]]
"""By a number's name its limit, and "most" or "least": whether that is the largest or the smallest allowed value."""


def missed(report: Mapping[str, float], limits: Limits) -> list[str]:
    """A line for each number of the report that is beyond its limit. A number that the report lacks misses nothing."""
    lines = []
    for name, (limit, kind) in limits.items():
        value = report.get(name, limit)
        if value > limit if kind == "most" else value < limit:
            lines.append(f"{name}: {value:.3g}, at {kind} {limit:g}")
    return lines


def main(described: str | None, parts: Sequence[Part], on_gpu: Part, limits: Limits) -> None:
    """Run the parts, with --gpu also `on_gpu`. With --check exit with 1 where a limit is missed."""
    parser = Parser(description=described)
    parser.add_argument("--gpu", action="store_true", help="also a training step on one CUDA device")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    say(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, 1 thread of "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    report: dict[str, float] = {}
    for part in [*parts, *([on_gpu] if options.gpu else [])]:
        for name, value in part().items():
            say(f"  {name:52}{value:14,.4g}" if value < 1e6 else f"  {name:52}{value:14,.0f}")
            report[name] = value
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    lines = missed(report, limits)
    for line in lines:
        say(f"  target missed: {line}")
    sys.exit(1 if options.check and lines else 0)
