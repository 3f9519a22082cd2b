"""Metrics of captions from published columns: against references, by a judge's verdicts, or of the captions alone.

    python -m recap.evaluate.suite classics runs/mine --references runs/human   BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE
    python -m recap.evaluate.suite diversity runs/mine                          lengths, vocabulary, distinct-n, ...
    python -m recap.evaluate.suite rating runs/rated-a runs/rated-b             a judge's ratings from 1 to 5
    python -m recap.evaluate.suite caparena runs/battle-a runs/battle-b         battles with opponents, judged
    python -m recap.evaluate.suite truematch runs/features --bags 3.json 5.json captions that find their image in a bag

CAPTIONS and references are run directories, exports, or folders of parquet files. A judge is a generating job
(configs/generate/rating.yaml, configs/systems, docs/judges.md): its answers are a column. Every number stands with its
n and a 95 % bootstrap interval, and with what is missing from it. Torch-free. --json prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc.base.command import command
from hpc.base.errors import Exit, Parser
from recap.evaluate import classics, diversity, suite_features, suite_judges, text_sets
from recap.evaluate.intervals import Mean


def _classics(args: argparse.Namespace) -> dict[str, Any]:
    own = text_sets.read(args.captions, [args.field] if args.field else text_sets.CAPTIONS)
    fields = [args.reference_field] if args.reference_field else text_sets.REFERENCES
    said, wanted = text_sets.join_by_sample(own, text_sets.read(args.references, fields))
    found = classics.scores(said, wanted, args.tokenizer, args.meteor, args.spice)
    account = {
        "n": found.n, "missing": len(wanted.keys() - said.keys()), "extra": len(said.keys() - wanted.keys()),
        "left_out": own.left_out, "tokens": args.tokenizer, **text_sets.unfinished(own.unfinished),
    }  # fmt: skip
    if found.spice is None:
        return {"metrics": found.scores, "account": account}
    account["without_elements"] = found.spice.bare
    return {"metrics": found.scores | {"SPICE": found.spice.score}, "account": account}


def _diversity(args: argparse.Namespace) -> dict[str, Any]:
    own = text_sets.read(args.captions, [args.field] if args.field else text_sets.CAPTIONS)
    found = diversity.compute({sample: texts[0] for sample, texts in own.texts.items()})
    metrics: dict[str, Any] = {"words": found.words, "vocabulary": found.vocabulary}
    metrics |= {f"distinct-{order}": share for order, share in enumerate(found.distinct, 1)}
    if found.self_bleu is not None:
        metrics["self-BLEU"] = found.self_bleu
    account = {"n": found.n, "left_out": own.left_out, "compared": found.compared}
    return {"metrics": metrics, "account": account | text_sets.unfinished(own.unfinished)}


def better(metric: str, name: str) -> int:
    """1 where a larger value of a metric's number is better, -1 where a smaller one is, 0 where neither is."""
    if metric in ("openchair", "crosscheck") or (metric == "claims" and name.startswith(("risk", "opener"))):
        return -1
    return 0 if metric == "diversity" or (metric == "claims" and name == "claimed") else 1


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The result for people: a line for each number, then the counts behind them."""
    for name, value in found["metrics"].items():
        if isinstance(value, Mean):
            yield f"{name:<20} {value.value:>10.4f}   {value.low:.4f} to {value.high:.4f}, n = {value.n:,}"
        elif value is None:
            yield f"{name:<20}  undefined"
        else:
            yield f"{name:<20} {value:>10,.4f}" if isinstance(value, float) else f"{name:<20} {value:>10,}"
    for name, value in found["account"].items():
        parts = value.items() if isinstance(value, dict) else [(name, value)]
        said = ", ".join(f"{key.replace('_', ' ')} {_number(part)}" for key, part in parts)
        yield f"{name}: {said}" if isinstance(value, dict) else said


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _parser() -> Parser:
    parser = Parser(prog="python -m recap.evaluate.suite", description=__doc__)
    metrics = parser.add_subparsers(dest="metric", required=True, metavar="METRIC")
    near = metrics.add_parser("classics", help="BLEU-1 to 4, ROUGE-L, CIDEr-D, METEOR, SPICE against references")
    near.add_argument("captions", type=Path)
    near.add_argument("--references", type=Path, required=True, help="run, export or column folder of human texts")
    near.add_argument("--reference-field", help="field of the references (default: the first that is known)")
    various = metrics.add_parser("diversity", help="length, vocabulary, distinct-n, self-BLEU")
    various.add_argument("captions", type=Path)
    measures = (
        {"classics": _classics, "diversity": _diversity} | suite_judges.add(metrics) | suite_features.add(metrics)
    )
    _of_texts(metrics.choices)
    for name, part in metrics.choices.items():
        part.set_defaults(measure=measures[name])
        part.add_argument("--json", action="store_true", help="print JSON")
        part.add_argument("--out", type=Path, metavar="FILE", help="write the JSON into a file, too")
    return parser


def _of_texts(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add the arguments that several metrics of texts have."""
    for name in ("classics", "diversity", "finecapeval"):
        parsers[name].add_argument("--field", help="field of the caption (default: caption, re_caption, text)")
    for name in ("classics", "finecapeval"):
        parsers[name].add_argument(
            "--tokenizer", choices=classics.TOKENIZERS, default="ptb",
            help="ptb, as published numbers are made (needs Java), or plain",
        )  # fmt: skip
        parsers[name].add_argument("--meteor", action="store_true", help="METEOR, too (20 seconds of a core to start)")
        parsers[name].add_argument(
            "--spice", type=Path, metavar="FOLDER", help="SPICE, too, by Stanford CoreNLP 3.6.0's jars in a folder"
        )


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments, with `metric`, its name, and `measure`, the function that computes it from these arguments."""
    return _parser().parse_args(arguments)


@command
def main(arguments: list[str] | None) -> int:
    args = parsed(arguments)
    found = args.measure(args)
    plain = found | {"metrics": {n: v.plain if isinstance(v, Mean) else v for n, v in found["metrics"].items()}}
    written = json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    if args.out:
        args.out.write_text(written, encoding="utf-8")
    sys.stdout.write(written if args.json else "".join(f"{line}\n" for line in lines(found)))
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
