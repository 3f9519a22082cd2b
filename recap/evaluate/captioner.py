"""Scores captions against known facts of real flags, or against human texts.

    python -m recap.evaluate.captioner CAPTIONS --truth recap/demo/flags_truth.csv --split heldout
    python -m recap.evaluate.captioner --model recap/demo/captioner [--json]
    python -m recap.evaluate.captioner --model M --shapes 200                facts of generated shapes instead of flags
    python -m recap.evaluate.captioner CAPTIONS --references COLUMN      BLEU, ROUGE-L, CIDEr-D of any data set

CAPTIONS is a run directory, an export, or a folder of column parquet files (key, status, caption); --model captions
the shipped flags with a checkpoint instead. A flag without a caption counts as wrong everywhere. COLUMN may be of the
same kinds, with one human text or a list for each sample. Samples are joined by shard and key; without shards in common
by key, or by key and image where keys repeat. Captions of other images are refused where both sides have image_sha256.
A reference without a caption counts as an empty caption (missing); a caption without a reference is ignored (extra).

colours      all colours over 8 % of the area are named, and none under 1 % is; shades do not matter.
layout       the layout class is right (where the truth is "other", no answer is right).
band order   all band colours are named in order, for flags whose bands are counted.
all          colours, layout and (where counted) band order.

Each share stands with its 95 % Wilson interval and beside what the best constant caption reaches
(majority).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from hpc.base.errors import Exit, Parser, UserError
from recap.demo import FLAGS, FLAGS_TRUTH
from recap.engine.settings import PAPER_PROMPT
from recap.evaluate import text_sets
from recap.evaluate.classics import TOKENIZERS, scores
from recap.model_files import model_folder
from recap.worlds.flag_captions import parse
from recap.worlds.flag_scenes import COLOURS

NAMED_OVER = 0.08
UNNAMED_UNDER = 0.01


@dataclass(frozen=True, slots=True)
class Truth:
    """The facts of one flag. shares: share of the area by colour. bands: colours in order, () where they are not
    counted."""

    key: str
    layout: str
    bands: tuple[str, ...]
    shares: Mapping[str, float]

    @property
    def large(self) -> frozenset[str]:
        """Colours that a caption must name."""
        return frozenset(colour for colour, share in self.shares.items() if share > NAMED_OVER)

    @property
    def visible(self) -> frozenset[str]:
        """Colours that a caption may name."""
        return frozenset(colour for colour, share in self.shares.items() if share >= UNNAMED_UNDER)

    def colours_right(self, named: frozenset[str]) -> bool:
        return self.large <= named <= self.visible


@dataclass(frozen=True, slots=True)
class Share:
    """`right` out of `total`. majority: the share that the best constant answer reaches on the same flags."""

    right: int
    total: int
    majority: float

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927); unlike the normal approximation it stays in [0, 1].

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    """
    if total == 0:
        return 0.0, 1.0
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def read_truth(path: Path, split: str) -> list[Truth]:
    """Rows of flags_truth.csv of one split ("train", "heldout" or "all")."""
    truths = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if split not in ("all", row["split"]):
                continue
            pairs = (entry.split(":") for entry in row["colours"].split())
            shares = {colour: float(share) for colour, share in pairs}
            truths.append(Truth(row["iso"], row["layout"], tuple(row["bands"].split()), shares))
    return truths


def read_captions(directory: Path) -> dict[str, str]:
    """key -> caption of the rows whose status is ok; flags' keys are the same in no two shards."""
    return {key: texts[0] for (_, key), texts in text_sets.read(directory, text_sets.CAPTIONS).texts.items()}


def caption_flags(model_directory: Path, keys: Sequence[str], batch: int = 32) -> dict[str, str]:
    """Caption the shipped flags with a Llava checkpoint: greedy, 128 tokens, the paper's prompt."""

    from recap.data.images import decode_rgb
    from recap.demo.build_truth import pictures
    from recap.evaluate.answers import Answerer

    answerer, wanted = Answerer(model_directory), set(keys)
    flags = [(iso, png) for iso, _, png in pictures(FLAGS) if iso in wanted]
    captions: dict[str, str] = {}
    for first in range(0, len(flags), batch):
        part = flags[first : first + batch]
        images = [decode_rgb(png) for _, png in part]
        captions.update(zip((iso for iso, _ in part), answerer.ask_each(PAPER_PROMPT, images), strict=True))
    return captions


def score_shapes(model: Path, count: int) -> dict[str, Share]:
    """For `count` generated pictures of shapes that no training saw (seed -1): the share of captions without a wrong
    fact, and the share of those that also leave nothing out. The majority is that of the most frequent caption."""
    from recap.evaluate.answers import Answerer
    from recap.worlds import shape_claims, shapes

    answerer = Answerer(model)
    made = [shapes.sample(-1, index) for index in range(count)]
    found = [shape_claims.judge(answerer.ask(PAPER_PROMPT, [sample.image]), sample.scene) for sample in made]
    constant = [[shape_claims.judge(text, sample.scene) for sample in made] for text in {s.caption for s in made[:50]}]
    correct = max(sum(j.correct for j in row) for row in constant) / count
    complete = max(sum(j.complete for j in row) for row in constant) / count
    return {
        "correct": Share(sum(j.correct for j in found), count, correct),
        "complete": Share(sum(j.complete for j in found), count, complete),
    }


def _best_constant_colours(truths: Sequence[Truth]) -> float:
    """The share that the best single set of up to four colours gets right on these flags."""
    sets = [frozenset(chosen) for size in range(1, 5) for chosen in combinations(COLOURS, size)]
    return max(sum(truth.colours_right(named) for truth in truths) for named in sets) / max(1, len(truths))


def _best_constant_facts(truths: Sequence[Truth]) -> float:
    """The share that the best single caption gets right in everything; candidates: the flags' own facts."""

    def hits(claim: Truth) -> int:
        return sum(
            truth.colours_right(claim.large) and truth.layout == claim.layout and truth.bands in ((), claim.bands)
            for truth in truths
        )

    return max(map(hits, truths), default=0) / max(1, len(truths))


def _most_common(answers: Sequence[object]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers) if answers else float("nan")


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of captions. per_colour: by colour, and for "any": (named rightly, named, to be named, named of these)."""

    flags: int
    missing: int
    shares: dict[str, Share]
    per_colour: dict[str, tuple[int, int, int, int]]


def score(truths: Sequence[Truth], captions: Mapping[str, str]) -> Report:
    """Judge captions by the facts that `worlds.flag_captions.parse` finds in them."""
    claims = {truth.key: parse(captions.get(truth.key, "")) for truth in truths}
    colours = [truth.colours_right(claims[truth.key].colours) for truth in truths]
    layouts = [truth.layout == claims[truth.key].layout for truth in truths]
    orders = [not truth.bands or truth.bands == claims[truth.key].bands for truth in truths]
    banded = [truth for truth in truths if truth.bands]
    everything = [all(facts) for facts in zip(colours, layouts, orders, strict=True)]
    order_hits = sum(truth.bands == claims[truth.key].bands for truth in banded)
    shares = {
        "colours": Share(sum(colours), len(truths), _best_constant_colours(truths)),
        "layout": Share(sum(layouts), len(truths), _most_common([truth.layout for truth in truths])),
        "band order": Share(order_hits, len(banded), _most_common([truth.bands for truth in banded])),
        "all": Share(sum(everything), len(truths), _best_constant_facts(truths)),
    }
    per_colour = {}
    for colour in COLOURS:
        named = [truth for truth in truths if colour in claims[truth.key].colours]
        large = [truth for truth in truths if colour in truth.large]
        right = sum(colour in truth.visible for truth in named)
        found = sum(colour in claims[truth.key].colours for truth in large)
        per_colour[colour] = (right, len(named), len(large), found)
    counts = [sum(column) for column in zip(*per_colour.values(), strict=True)]
    per_colour["any"] = (counts[0], counts[1], counts[2], counts[3])
    missing = sum(not captions.get(truth.key) for truth in truths)
    return Report(len(truths), missing, shares, per_colour)


def as_json(report: Report) -> str:
    shares = {
        name: {**asdict(share), "value": share.value, "interval": share.interval}
        for name, share in report.shares.items()
    }
    colours = {
        colour: {
            "precision": right / named if named else None,
            "recall": found / large if large else None,
            "named": named,
            "large": large,
        }
        for colour, (right, named, large, found) in report.per_colour.items()
    }
    return json.dumps(
        {"flags": report.flags, "missing": report.missing, "shares": shares, "colours": colours}, indent=1
    )


def share_lines(shares: Mapping[str, Share]) -> list[str]:
    """A table of shares, 80 columns."""
    lines = [f"{'':12}{'right':>10}{'share':>8}   95 % interval   {'majority':>8}"]
    for name, share in shares.items():
        low, high = share.interval
        count = f"{share.right}/{share.total}"
        lines.append(f"{name:12}{count:>10}{share.value:8.1%}   {low:5.1%} - {high:5.1%}   {share.majority:8.1%}")
    return lines


def as_table(report: Report) -> str:
    """The report for people, 80 columns."""
    lines = [f"{report.flags} flags, {report.missing} without a caption", ""]
    lines += share_lines(report.shares)
    lines += ["", f"{'colour':12}{'precision':>26}{'recall':>30}"]
    for colour, (right, named, large, found) in report.per_colour.items():
        both = (_with_interval(right, named), _with_interval(found, large))
        if colour == "any":  # a flag's colours are not independent: no interval
            both = (_share(right, named), _share(found, large))
        lines.append(f"{colour:12}{both[0]:>30}{both[1]:>30}")
    return "\n".join(lines) + "\n"


def _with_interval(right: int, total: int) -> str:
    if total == 0:
        return "-"
    low, high = wilson(right, total)
    return f"{_share(right, total)} ({low:.1%}-{high:.1%})"


def _share(right: int, total: int) -> str:
    return f"{right}/{total} {right / total:.1%}" if total else "-"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, nargs="?", help="directory of column parquet files")
    parser.add_argument("--model", type=Path, help="caption the shipped flags with this checkpoint instead")
    parser.add_argument("--truth", type=Path, default=FLAGS_TRUTH)
    parser.add_argument("--split", choices=["heldout", "train", "all"], default="heldout")
    parser.add_argument("--shapes", type=int, help="with --model: caption so many generated shapes instead of flags")
    parser.add_argument("--references", type=Path, help="run, export or column folder with human texts to compare with")
    parser.add_argument("--field", help="field of CAPTIONS that holds the caption (default: caption, re_caption, text)")
    parser.add_argument("--reference-field", help="field that holds the references (default: the first that is known)")
    parser.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        default="ptb",
        help="of --references; plain needs no Java, see recap.evaluate.suite",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--show", action="store_true", help="print each caption and what is wrong with it first")
    args = parser.parse_args(arguments)
    if (args.captions is None) == (args.model is None):
        parser.error("give CAPTIONS or --model, one of them")
    if args.shapes and args.model is None:
        parser.error("--shapes needs --model")
    try:
        sys.stdout.write(_report(args))
    except (UserError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return Exit.USAGE
    return Exit.COMPLETE


def compare(
    captions: text_sets.TextSet,
    place: Path,
    name: str | None = None,
    keys: set[str] | None = None,
    tokenizer: str = "ptb",
) -> dict[str, float]:
    """Scores of captions against the references at `place`, and how many samples they are of.

    Args:
        name: the references' field; None: the first that is there.
        keys: of the samples that count; None: all.
    """
    said, wanted = text_sets.join_by_sample(captions, text_sets.read(place, [name] if name else text_sets.REFERENCES))
    if keys is not None:
        wanted = {sample: texts for sample, texts in wanted.items() if sample[1] in keys}
    counts = {
        "n": len(wanted), "missing": len(wanted.keys() - said.keys()), "extra": len(said.keys() - wanted.keys()),
        "left_out": captions.left_out,
    }  # fmt: skip
    flat = {"/".join(sample): text for sample, text in said.items()}
    found = scores(flat, {"/".join(sample): texts for sample, texts in wanted.items()}, tokenizer)
    return {metric: score.value for metric, score in found.scores.items()} | counts


def _report(arguments: argparse.Namespace) -> str:
    """The report that the arguments ask for, as text."""
    if arguments.model:
        model_folder(arguments.model)
    if arguments.references and not arguments.model:
        own = text_sets.read(arguments.captions, [arguments.field] if arguments.field else text_sets.CAPTIONS)
        return (
            json.dumps(compare(own, arguments.references, arguments.reference_field, tokenizer=arguments.tokenizer))
            + "\n"
        )
    if arguments.shapes:
        found = score_shapes(arguments.model, arguments.shapes)
        values = {name: {**asdict(share), "value": share.value} for name, share in found.items()}
        return json.dumps(values) + "\n" if arguments.json else "\n".join(share_lines(found)) + "\n"
    truths = read_truth(arguments.truth, arguments.split)
    if arguments.model:
        captions = caption_flags(arguments.model, [truth.key for truth in truths])
    else:
        captions = read_captions(arguments.captions)
        if captions.keys().isdisjoint(truth.key for truth in truths):
            raise UserError(
                f"evaluate: none of the {len(captions):,} captions of {arguments.captions} is of a flag in "
                f"{arguments.truth}. Compare them with human texts: --references COLUMN."
            )
    for truth in truths if arguments.show else []:
        claim = parse(captions.get(truth.key, ""))
        wrong = "" if truth.colours_right(claim.colours) else "C"
        wrong += "" if truth.layout == claim.layout else "L"
        wrong += "" if not truth.bands or truth.bands == claim.bands else "B"
        sys.stdout.write(f"{truth.key} {wrong:3} {captions.get(truth.key, '')}\n")
    if arguments.references:
        from recap.demo.build_truth import pictures

        digests = {("", iso): hashlib.sha256(png).hexdigest() for iso, _, png in pictures(FLAGS) if iso in captions}
        said = text_sets.TextSet(arguments.model, {("", key): [text] for key, text in captions.items()}, digests)
        asked = {truth.key for truth in truths}
        return (
            json.dumps(compare(said, arguments.references, arguments.reference_field, asked, arguments.tokenizer))
            + "\n"
        )
    report = score(truths, captions)
    return as_json(report) + "\n" if arguments.json else as_table(report)


if __name__ == "__main__":
    sys.exit(main())
