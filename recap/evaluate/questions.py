"""MMMU and MM-Vet, the two benchmarks of the paper's table 1, on data that the user has.

    python -m recap.evaluate.questions mmmu DATA --model M [--device cuda] [--limit N]
    python -m recap.evaluate.questions mmvet DATA --model M --out answers.json
    python -m recap.evaluate.questions mmvet-grades DATA grades.json

mmmu          DATA holds MMMU's parquet files (validation split, any subjects). Prints the share right per subject and
              in all, with 95 % Wilson intervals, by the rules of MMMU's own script; where that script would guess, an
              answer that names no option is wrong.
mmvet         DATA holds mm-vet.json and images/. Writes {"v1_0": answer, ...}, which MM-Vet's evaluator (GPT-4) grades.
mmvet-grades  grades.json is what that evaluator wrote: {"v1_0": {"score": [0.5]}, ...}. Prints the table by capability.

A question whose image cannot be read is skipped: named and counted below the table.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import Exit, Parser, UserError
from recap.data.images import BadImage, decode_rgb
from recap.evaluate.captioner import wilson
from recap.evaluate.mmmu_rules import LETTERS, open_answer, option
from recap.model_files import model_folder


@dataclass(frozen=True)
class Question:
    """One question of MMMU. answers: a letter, or the texts that count as an open answer."""

    key: str
    subject: str
    text: str
    options: list[str]
    answers: list[str]
    images: list[bytes]

    def prompt(self) -> str:
        """The prompt, as LLaVA's evaluation scripts write it."""
        text = re.sub(r"\s*<image \d+>\s*", " ", self.text).strip()
        if not self.options:
            return f"{text}\nAnswer the question using a single word or phrase."
        named = zip(LETTERS, self.options, strict=False)  # there are fewer options than letters
        options = "\n".join(f"{letter}. {option}" for letter, option in named)
        return f"{text}\n{options}\nAnswer with the option's letter from the given choices directly."

    def right(self, said: str) -> bool:
        """Whether an answer is right; see recap.evaluate.mmmu_rules."""
        if not self.options:
            return open_answer(said, self.answers)
        return option(said, self.options) in self.answers


def read_mmmu(folder: Path) -> Iterator[Question]:
    """The questions of all parquet files under a folder, subject by subject."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise UserError(f"mmmu: no parquet files under {folder}")
    for path in files:
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"mmmu: {path} cannot be read: {error}") from error
        for row in rows:
            try:
                options, answer = _listed(row["options"]), str(row["answer"])
                answers = _listed(answer) if answer.startswith("[") else [answer]
                pictures = [row.get(f"image_{n}") for n in range(1, 8)]
                images = [picture["bytes"] for picture in pictures if picture]
                subject = re.sub(r"^(validation|dev|test)_|_\d+$", "", row["id"])
                yield Question(row["id"], subject, row["question"], options, answers, images)
            except (KeyError, ValueError, SyntaxError, TypeError) as error:
                raise UserError(f"mmmu: {path} is not in MMMU's format: {error!r}") from error


def _listed(value: Any) -> list[str]:
    """A list of texts, which MMMU's columns hold as a list or as a Python literal: "['red', 'blue']"."""
    return [str(item) for item in (ast.literal_eval(value) if isinstance(value, str) else value or [])]


def mmmu(
    questions: Iterator[Question], answerer: Any, limit: int | None
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """((right, asked) by subject, why a question was skipped by its key: an image cannot be read)."""
    skipped: dict[str, str] = {}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for number, question in enumerate(questions):
        if limit is not None and number >= limit:
            break
        try:
            images = [decode_rgb(data) for data in question.images]
        except BadImage as error:
            skipped[question.key] = str(error)
            continue
        counts[question.subject][0] += question.right(answerer.ask(question.prompt(), images, 32))
        counts[question.subject][1] += 1
    return {subject: (right, asked) for subject, (right, asked) in counts.items()}, skipped


def as_table(counts: Mapping[str, tuple[int, int]], skipped: Mapping[str, str]) -> str:
    lines = [f"{'subject':40}{'right':>10}{'share':>8}   95 % interval"]
    total = (sum(right for right, _ in counts.values()), sum(asked for _, asked in counts.values()))
    for subject, (right, asked) in [*sorted(counts.items()), ("all", total)]:
        low, high = wilson(right, asked)
        share = right / asked if asked else 0.0
        lines.append(f"{subject:40}{f'{right}/{asked}':>10}{share:8.1%}   {low:5.1%} - {high:5.1%}")
    return "\n".join([*lines, _told(total[1], skipped)]) + "\n"


def _told(n: int, skipped: Mapping[str, str]) -> str:
    """The lines below every table: how many questions were asked, and which were skipped."""
    why = "".join(f"\n  {key}: {reason}" for key, reason in skipped.items())
    return f"n {n} · skipped {len(skipped)} (an image cannot be read)" + why


def read_mmvet(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> {"imagename", "question", "answer", "capability"}."""
    try:
        return json.loads((folder / "mm-vet.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"mmvet: {folder}/mm-vet.json cannot be read: {error}") from error


def mmvet(folder: Path, answerer: Any, limit: int | None) -> tuple[dict[str, str], dict[str, str]]:
    """(answers by id, why a question was skipped by id: its image cannot be read). MM-Vet counts skipped ones as 0."""
    answers, skipped = {}, {}
    for key, row in list(read_mmvet(folder).items())[:limit]:
        try:
            image = decode_rgb((folder / "images" / row["imagename"]).read_bytes())
        except (OSError, BadImage) as error:
            skipped[key] = str(error)
            continue
        answers[key] = answerer.ask(row["question"], [image], 512)
    return answers, skipped


Grades = Mapping[str, Mapping[str, Sequence[float]]]


def read_grades(path: Path) -> Grades:
    """The grades that MM-Vet's evaluator wrote."""
    try:
        found = json.loads(path.read_text())
        return {str(key): {"score": [float(score) for score in row["score"]]} for key, row in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"mmvet-grades: {path} is not what MM-Vet's evaluator writes: {error!r}") from error


def grade_table(rows: Mapping[str, dict[str, Any]], grades: Grades) -> dict[str, float]:
    """Mean grade (0-100) of each capability, and "total" over all questions; an ungraded question counts as 0."""
    by: dict[str, list[float]] = defaultdict(list)
    for key, row in rows.items():
        scores = grades.get(key, {}).get("score", [])
        mean = sum(scores) / len(scores) if scores else 0.0
        for capability in [*row["capability"], "total"]:
            by[capability].append(mean)
    return {capability: 100 * sum(found) / len(found) for capability, found in by.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["mmmu", "mmvet", "mmvet-grades"])
    parser.add_argument("data", type=Path)
    parser.add_argument("grades", type=Path, nargs="?")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.stdout.write(_run(args))
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE
    return Exit.COMPLETE


def _run(args: argparse.Namespace) -> str:
    if args.benchmark == "mmvet-grades":
        if args.grades is None:
            raise UserError("mmvet-grades: name the evaluator's JSON file after the data folder")
        rows, grades = read_mmvet(args.data), read_grades(args.grades)
        table = grade_table(rows, grades)
        lines = "".join(f"{capability:12}{value:6.1f}\n" for capability, value in table.items())
        return f"{lines}n {len(rows)} · ungraded {len(rows.keys() - grades.keys())}, which count as 0\n"
    if args.model is None or (args.benchmark == "mmvet" and args.out is None):
        raise UserError(f"{args.benchmark}: --model is missing, or --out for mmvet")
    try:
        model_folder(args.model)
    except FileNotFoundError as error:
        raise UserError(f"{args.benchmark}: --model: {error}") from error
    from recap.evaluate.answers import Answerer

    answerer = Answerer(args.model, args.device)
    if args.benchmark == "mmmu":
        return as_table(*mmmu(read_mmmu(args.data), answerer, args.limit))
    answers, skipped = mmvet(args.data, answerer, args.limit)
    args.out.write_text(json.dumps(answers, indent=1, ensure_ascii=False))
    return f"{len(answers)} answers in {args.out}\n{_told(len(answers), skipped)}\n"


if __name__ == "__main__":
    sys.exit(main())
