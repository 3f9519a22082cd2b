"""The suite's metrics of CLIP features: their command line arguments, and the runs that they read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hpc.run.published import Published
from recap.evaluate import classics, features, finecapeval, image2text, text_sets, truematch
from recap.evaluate.suite_judges import Found, Measure
from recap.evaluate.text_sets import TextSet


def _truematch(args: argparse.Namespace) -> Found:
    found_features = features.read(args.features, args.clip, args.text, captions=True)
    bags = truematch.read_bags(args.bags)
    found = truematch.compute(found_features, bags)
    metrics: dict[str, Any] = {f"R@1 of {size}": mean for size, mean in found.recall.items()}
    account = {"bags": len(bags), "incomplete": found.incomplete, "missing": found.missing}
    by_chance = {f"of {size}": 100 / size for size in found.recall}
    return {
        "metrics": metrics,
        "account": {"bags": account, "by chance": by_chance, "features": found_features.account},
    }


def _finecapeval(args: argparse.Namespace) -> Found:
    annotations = finecapeval.read(args.data)
    own = text_sets.read(args.captions, [args.field] if args.field else text_sets.CAPTIONS)
    wanted = TextSet(args.data, {("", image): [image] for image in annotations.images})
    said, images = text_sets.join_by_sample(own, wanted)
    captions = {names[0]: said[sample] for sample, names in images.items() if sample in said}
    found = finecapeval.compute(annotations, captions)
    metrics: dict[str, Any] = dict(found.recall)
    near = classics.scores(captions, annotations.captions, args.tokenizer, args.meteor, args.spice)
    every = near.scores | ({"SPICE": near.spice.score} if near.spice else {})
    metrics |= {f"overall {name}": mean for name, mean in every.items()}
    account: dict[str, Any] = {
        "images": {"n": len(images), "missing": found.missing, "extra": len(said.keys() - images.keys())},
        "captions": {"left_out": own.left_out, "tokens": args.tokenizer, **text_sets.unfinished(own.unfinished)},
    }
    if args.features:
        known = features.read(args.features, args.clip, args.text, captions=True)
        ranks, missing = finecapeval.retrieval(known, annotations.images)
        metrics |= {f"text to image R@{most}": mean for most, mean in ranks.items()}
        unseen = len(annotations.images) - ranks[1].n
        account["features"] = known.account | {"missing": missing, "annotated_without_features": unseen}
    return {"metrics": metrics, "account": account}


def _image2text(args: argparse.Namespace) -> Found:
    originals = features.read(args.originals, args.clip)
    pictures = features.read(args.pictures, args.clip)
    asked = Published(args.samples).submission.config.get("prompts") or {}
    metrics: dict[str, Any] = {}
    account: dict[str, Any] = {"originals": originals.account, "pictures": pictures.account}
    for scale, drawn in image2text.read_drawn(args.samples).items():
        found = image2text.compute(originals, pictures, drawn, first_alone=bool(asked.get("first")))
        metrics[f"Image2Text@{scale}" if scale else "Image2Text"] = found.score
        counts = {name: getattr(found, name) for name in ("empty", "missing", "undrawn", "cut")}
        account[f"captions@{scale}" if scale else "captions"] = counts | {"cut_share": found.cut / found.score.n}
    return {"metrics": metrics, "account": account}


def add(metrics: Any) -> dict[str, Measure]:
    """Add the parsers of these metrics. Returns the function that computes each, by name."""
    made = "run of configs/score/features.yaml"
    bags = metrics.add_parser("truematch", help="share of captions that find their image among nearly equal ones")
    bags.add_argument("features", type=Path, help=f"{made} over images and captions")
    bags.add_argument("--bags", type=Path, nargs="+", required=True, help="JSON: lists of bags, lists of images' keys")
    fine = metrics.add_parser("finecapeval", help="what captions say of background, objects and relations")
    fine.add_argument("captions", type=Path)
    fine.add_argument("--data", type=Path, required=True, metavar="CSV", help="FineCapEval.csv, or one of its form")
    fine.add_argument("--features", type=Path, help=f"{made}, for text-to-image retrieval")
    again = metrics.add_parser("image2text", help="likeness of images and what is drawn from their captions")
    again.add_argument("originals", type=Path, help=f"{made} over the images")
    again.add_argument("--pictures", type=Path, required=True, help="the same over what recap.dit.write_images wrote")
    again.add_argument("--samples", type=Path, required=True, help="the sampling run that drew the captions")
    for part in (bags, fine, again):
        part.add_argument("--clip", metavar="NAME", help="which CLIP's features, where a run has several")
    for part in (bags, fine):
        part.add_argument("--text", metavar="NAME", help="which text's features, where a run has several")
    return {"truematch": _truematch, "finecapeval": _finecapeval, "image2text": _image2text}
