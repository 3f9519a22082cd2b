"""Write classics.json: captions, references and what COCOEvalCap, with its own tokenizer, makes of them. Run by hand:

    python -m tests.evaluate.make_classics

The references are human descriptions of real flags (The World Factbook, public domain), each with its flag's alt-text;
the captions are those descriptions cut, with words left out and exchanged, by a seed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recap.demo import FLAGS

FILE = Path(__file__).parent / "classics.json"
KEYS = 50


def texts(rng: random.Random) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions, and one to three references each, by key."""
    tables = [
        pq.read_table(path) for path in sorted((FLAGS.parent / "flags_columns" / "description").glob("*.parquet"))
    ]
    rows = [row for table in tables for row in table.to_pylist() if row["text"]]
    rows = sorted(rng.sample(rows, KEYS), key=lambda row: row["key"])
    captions, references = {}, {}
    for row in rows:
        said = row["text"].split(";")[0].split(". ")[0].split()
        other = rng.choice(rows)["text"].split()
        words = [rng.choice(other) if rng.random() < 0.15 else word for word in said if rng.random() > 0.2]
        captions[row["key"]] = " ".join(words[: rng.randrange(5, 40)]) + rng.choice([".", "", "!", " (seen)"])
        references[row["key"]] = [row["text"], f"the flag of {row['key']}", "It's a U.N. member's flag, isn't it?"]
        del references[row["key"]][rng.randrange(1, 4) :]
    return captions, references


def coco(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """As pycocoevalcap/eval.py does it."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    wanted = tokenizer.tokenize({key: [{"caption": text} for text in found] for key, found in references.items()})
    made = tokenizer.tokenize({key: [{"caption": text}] for key, text in captions.items()})
    bleu, _ = Bleu(4).compute_score(wanted, made, verbose=0)
    found: dict[str, Any] = {f"BLEU-{order}": value for order, value in enumerate(bleu, 1)}
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr-D", Cider()), ("METEOR", Meteor())):
        found[name] = float(scorer.compute_score(wanted, made)[0])
    return found


if __name__ == "__main__":
    captions, references = texts(random.Random(1))
    whole = {"captions": captions, "references": references, "expected": coco(captions, references)}
    FILE.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
