"""Everything that a first GPU is asked, in one command that fits a lease.

    python -m benchmarks.gpu --minutes 8 --out DIR         one CUDA device; DIR/gpu.json and DIR/gpu.md
    python -m benchmarks.gpu --rehearse --out DIR          every stage, tiny, on the CPU; no number means anything
    python -m benchmarks.gpu --only rates,bf16 --out DIR   some stages

It needs torch (2.11 or newer, with CUDA), transformers, numpy, Pillow, safetensors and triton; what needs more (DiT:
diffusers; vLLM) is left out with a line. Each stage runs in a process of its own within a share of the minutes: one
that fails or runs over costs its own numbers alone, and gpu.json is written after every number, so that a command that
is killed keeps what it has. The work is that of benchmarks/caption_work.py at LLaVA-1.5's shape with LLaMA-3-8B and
random weights.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Asks the driver's library, not the driver: the stages are forked from here, and a process that has started CUDA can
# not be forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch
import transformers

from benchmarks import gpu_checks, gpu_engine, gpu_train
from benchmarks.gpu_setting import REAL, REHEARSAL, Note, Setting
from benchmarks.gpu_table import table
from benchmarks.timing import say
from hpc.base.errors import Parser
from hpc.base.processes import die_with_parent
from recap import device


@dataclass(frozen=True)
class Stage:
    """`share`: parts of the minutes, of the sum of all stages'."""

    name: str
    share: float
    run: Callable[[Setting, Note], None]


STAGES = [
    Stage("rates", 35, gpu_engine.rates),
    Stage("kernels", 30, gpu_checks.kernels),
    Stage("exactness", 60, gpu_checks.exactness),
    Stage("bf16", 70, gpu_engine.precision("bf16")),
    Stage("fp8", 55, gpu_engine.precision("fp8")),
    Stage("fp8+kv", 55, gpu_engine.precision("fp8+kv")),
    Stage("generate", 60, gpu_engine.generate),
    Stage("from JPEGs", 45, gpu_engine.from_jpegs),
    Stage("sft", 35, gpu_train.sft),
    Stage("clip", 25, gpu_train.clip),
    Stage("dit", 25, gpu_train.dit),
    Stage("vllm", 25, gpu_engine.vllm),
]


def run_stage(stage: Stage, setting: Setting, limit_s: float, note: Note) -> None:
    """Run a stage in a forked process and pass on what it notes, until it ends or its time is over."""
    reader, writer = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=_work, args=(stage, setting, reader, writer))
    start = time.monotonic()
    child.start()
    os.close(writer)
    rest = b""
    while True:
        left = start + limit_s - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            note("failed", f"over its {limit_s:.0f} s")
            child.kill()
            break
        if not (data := os.read(reader, 65536)):
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            note(*json.loads(line))
    os.close(reader)
    child.join()
    if child.exitcode and child.exitcode != -signal.SIGKILL:
        note("failed", f"the process ended with {child.exitcode}")
    note("seconds", round(time.monotonic() - start, 1))


def _work(stage: Stage, setting: Setting, reader: int, writer: int) -> None:
    os.close(reader)
    die_with_parent()  # nothing goes on when the command is killed

    def note(name: str, value: Any) -> None:
        os.write(writer, json.dumps([name, value], default=float).encode() + b"\n")

    if setting.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        note("device", device.name(setting.device))  # here: CUDA must not be touched before the fork
        stage.run(setting, note)
    except ImportError as error:
        note("left out", f"{error.name or error} is not installed")
    except Exception as error:  # noqa: BLE001 - a stage that fails is a line
        note("failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}")
        traceback.print_exc()


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything but Python's start (default 8)")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--only", default=",".join(s.name for s in STAGES), help="stages, comma separated")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - {s.name for s in STAGES}:
        parser.error(f"--only: no stage {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in STAGES)}")
    stages = [s for s in STAGES if s.name in names]
    transformers.logging.set_verbosity_error()
    setting = REHEARSAL if options.rehearse else REAL
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "minutes": options.minutes, "shape": asdict(setting.shape),
        "torch": torch.__version__, "transformers": transformers.__version__, "stages": {},
    }  # fmt: skip
    for number, stage in enumerate(stages):
        found = report["stages"].setdefault(stage.name, {})

        def note(name: str, value: Any, found: dict[str, Any] = found, stage: Stage = stage) -> None:
            found[name] = value
            _write(options.out, report)
            say(f"{stage.name}: {name} {_short(value)}")

        left = end - time.monotonic()
        limit = left * stage.share / sum(s.share for s in stages[number:])  # time that a stage saves is the others'
        run_stage(stage, setting, limit, note)
    say(table(report))
    sys.exit(1 if any("failed" in found for found in report["stages"].values()) else 0)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=float)


def _write(folder: Path, report: dict[str, Any]) -> None:
    """Both files, each whole at any moment."""
    for name, text in (("gpu.json", json.dumps(report, indent=1) + "\n"), ("gpu.md", table(report))):
        part = folder / f".{name}.part"
        part.write_text(text)
        part.replace(folder / name)


if __name__ == "__main__":
    main()
