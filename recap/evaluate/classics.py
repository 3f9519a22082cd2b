"""BLEU-1 to 4, ROUGE-L, CIDEr-D, METEOR and SPICE of captions against human references, by COCO's own code.

Published numbers use PTB tokens (lower case, without punctuation) from Stanford's tokenizer in Java. COCO's wrapper
cuts its output at line ends and assigns lines to images by their number, so that a caption that contains U+2028 shifts
all captions after it to other images. Here every text is one line, and the number of lines is checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.evaluate import spice
from recap.evaluate.intervals import Mean, bootstrap, bootstrap_mean
from recap.evaluate.spice import Spice

TOKENIZERS = ("ptb", "plain")

# The tokens that COCO's wrapper removes (pycocoevalcap/tokenizer/ptbtokenizer.py). Its list has brackets in capitals,
# which never equal the tokenizer's in lower case: brackets count as words in published numbers, and so they do here.
_PUNCTUATION = {
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
}
_ALMOST = (1e-15, 1e-9)  # as in COCO's BLEU: added to numerator and denominator, so that nothing divides by zero
_ORDERS = 4


@dataclass(frozen=True)
class Classics:
    """scores: by the metric's name. n: samples with a reference. empty: how many of them have no caption.
    spice: None where it was not asked for.
    """

    scores: dict[str, Mean]
    n: int
    empty: int
    spice: Spice | None = None


def scores(
    captions: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    tokenizer: str = "ptb",
    meteor: bool = False,
    spice_models: Path | None = None,
) -> Classics:
    """Scores over all keys that have references. A missing caption counts as empty.

    Args:
        references: one or several for each key.
        tokenizer: ptb, or plain (lower case, split at all but letters, digits and apostrophes), which needs no Java;
            its scores cannot be compared with published ones.
        meteor: also compute METEOR, which needs Java and ptb, and 20 seconds of a core to start.
        spice_models: folder of CoreNLP's jars: also compute SPICE (recap.evaluate.spice), which needs Java and ptb.

    Raises:
        UserError: pycocoevalcap, Java, or what SPICE needs is not installed.
    """
    if (meteor or spice_models) and tokenizer != "ptb":
        raise UserError("evaluate: METEOR and SPICE are made of PTB tokens. Leave --tokenizer out.")
    if spice_models:
        spice.check(spice_models, _java())
    keys = list(references)
    flat = [captions.get(key, "") for key in keys]
    cut = tokenized([*flat, *(text for key in keys for text in references[key])], tokenizer)
    made, rest = {key: [text] for key, text in zip(keys, cut, strict=False)}, iter(cut[len(keys) :])
    wanted = {key: [next(rest) for _ in references[key]] for key in keys}
    found = _bleu(made, wanted)
    for name, module in (("ROUGE-L", "rouge.rouge.Rouge"), ("CIDEr-D", "cider.cider.Cider")):
        _, each = _coco(module)().compute_score(wanted, made)
        found[name] = bootstrap_mean(dict(zip(wanted, each, strict=True)))
    if meteor:
        found["METEOR"] = _meteor(made, wanted)
    parsed = spice.scores(made, wanted, _package(), spice_models, _java()) if spice_models else None
    return Classics(found, len(keys), sum(not text for text in cut[: len(keys)]), parsed)


def tokenized(texts: Sequence[str], tokenizer: str) -> list[str]:
    """Each text as its tokens with one space between them.

    >>> tokenized(["A red, white-edged flag."], "plain")
    ['a red white edged flag']
    """
    if tokenizer == "plain":
        return [" ".join(re.findall(r"[\w']+", text.lower())) for text in texts]
    # METEOR's protocol has ||| between texts.
    lines = [" ".join(text.replace("|||", " ").split()) for text in texts]
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = [_java(), "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # The tokenizer drops empty lines at the end of its input: an x after them keeps them.
    given = "\n".join([*lines, "x"]).encode("utf-8", "replace")
    done = subprocess.run([*command, "-encoding", "UTF-8"], input=given, capture_output=True, check=False)
    cut = done.stdout.decode("utf-8").rstrip("\n").split("\n")
    if done.returncode or len(cut) != len(texts) + 1:
        raise RuntimeError(f"PTBTokenizer: {len(cut) - 1} of {len(texts)} texts: {done.stderr.decode()[-500:]}")
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in cut[:-1]]


def _package() -> Path:
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise UserError("evaluate: pycocoevalcap is not installed. pip install pycocoevalcap")
    return Path(next(iter(found.submodule_search_locations)))


def _coco(name: str) -> Any:
    """A class of pycocoevalcap, by its path there."""
    _package()
    module, _, name = name.rpartition(".")
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise UserError(
            "evaluate: PTB tokens, METEOR and SPICE need Java (Debian: default-jre-headless). Install it, or say "
            "--tokenizer plain: its figures compare with each other, not with published ones."
        )
    return found


def _meteor(made: Mapping[Any, list[str]], wanted: Mapping[Any, list[str]]) -> Mean:
    """METEOR 1.5. Its value for a set is computed from all matches together, not as the mean over samples."""
    _java()
    meteor = _coco("meteor.meteor.Meteor")()
    whole, each = meteor.compute_score(wanted, made)
    spread = bootstrap_mean(dict(zip(wanted, each, strict=True)))
    low, high = whole - (spread.value - spread.low), whole + (spread.high - spread.value)
    return Mean(whole, low, high, len(each), spread.each)


def _bleu(made: Mapping[Any, list[str]], wanted: Mapping[Any, list[str]]) -> dict[str, Mean]:
    """Corpus BLEU: counts of n-grams are summed before they are divided, also in each resample."""
    scorer = _coco("bleu.bleu_scorer.BleuScorer")(n=_ORDERS)
    for key, texts in wanted.items():
        scorer += (made[key][0], texts)
    counts = np.array(
        [
            [
                *one["correct"], *one["guess"], one["testlen"],
                min((abs(length - one["testlen"]), length) for length in one["reflen"])[1],
            ]
            for one in scorer.ctest
        ],
        dtype=np.float64,
    )  # fmt: skip

    def of(order: int) -> Callable[[np.ndarray], float]:
        return lambda rows: _bleu_of(rows.sum(axis=0), order)

    return {f"BLEU-{order}": bootstrap(counts, of(order)) for order in range(1, _ORDERS + 1)}


def _bleu_of(sums: np.ndarray, order: int) -> float:
    tiny, small = _ALMOST
    shares = (sums[:order] + tiny) / (sums[_ORDERS : _ORDERS + order] + small)
    ratio = (sums[-2] + tiny) / (sums[-1] + small)
    brevity = float(np.exp(1 - 1 / ratio)) if ratio < 1 else 1.0
    return float(np.prod(shares) ** (1 / order)) * brevity
