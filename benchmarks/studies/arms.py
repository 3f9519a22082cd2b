"""What studies share: their arms, each trained in a process of its own, and one result file an arm."""

from __future__ import annotations

import argparse
import json
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

from hpc.base.errors import Parser


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


class Alone:
    """Stands for the gang (`hpc.gang`) of a training that has one rank, in this process."""

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


def arguments(described: str, study: Path, only: str) -> argparse.ArgumentParser:
    """The options of every study; only: how an arm is named, for the help."""
    parser = Parser(description=described)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, default=study)
    parser.add_argument("--jobs", type=int, default=1, help="arms at the same time")
    parser.add_argument("--only", help=f"train this arm alone: {only}")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plot", type=Path, help="write the figure here")
    return parser


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round(used.ru_utime + used.ru_stime, 1)


def save(results: Path, arm: Arm, made: dict[str, Any]) -> None:
    results.mkdir(exist_ok=True)
    (results / arm.file).write_text(json.dumps(made))


def load(results: Path, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Results of the arms that have one."""
    wanted = {arm.file for arm in arms}
    return [json.loads(file.read_text()) for file in sorted(results.glob("*.json")) if file.name in wanted]


def run_missing(arms: Sequence[Arm], results: Path, given: argparse.Namespace, module: str) -> None:
    """Train every arm without a result, `given.jobs` processes of `module` at a time."""
    waiting = [arm for arm in arms if not (results / arm.file).exists()]
    random.Random(0).shuffle(waiting)  # so that a stop leaves no arm without seeds
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < given.jobs:
            arm = waiting.pop(0)
            command = [sys.executable, "-m", module, str(given.out), "--study", str(given.study)]
            running.append(subprocess.Popen([*command, "--only", f"{arm.name}/{arm.seed}"]))
        done = running.pop(0)
        if done.wait():
            raise SystemExit(f"an arm failed with exit code {done.returncode}")


def word_tokenizer(texts: Sequence[str], tokens: dict[str, str], folder: Path) -> None:
    """Write a tokenizer of whole words, lower case, over all words of the texts.

    tokens: special tokens by kind ("unk_token", ...), in the order of their ids; texts stand between the last two.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts if text for word, _ in splitter.pre_tokenize_str(text.lower())})
    ids = {word: number for number, word in enumerate([*tokens.values(), *words])}
    made = Tokenizer(models.WordLevel(ids, tokens["unk_token"]))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), splitter
    first, last = list(tokens.values())[-2:]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(token, ids[token]) for token in (first, last)]
    )
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)
