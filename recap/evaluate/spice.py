"""SPICE (arXiv 1607.08822): F1 of the scene graphs of captions and of their references, by its own jar.

The jar lies in pycocoevalcap. What it parses with does not: Stanford CoreNLP 3.6.0, two jars in a folder of the
user's. COCO's wrapper fetches them, writes beside its own code, and fails on a Java from 15 on, since the jar writes
its answer by Java's own JavaScript. Here nothing is fetched, all lies in a temporary folder, and what lacks is named. A
sample whose caption and references have no element is left out and counted; theirs counts it as 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.evaluate.intervals import Mean, bootstrap_mean

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
SOURCE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
_MEMORY = "-Xmx8G"
_LAST_WITH_JAVASCRIPT = 14
_NOTHING = "."  # what stands for an empty text: the jar is given none


@dataclass(frozen=True)
class Spice:
    """score: the mean F1; None where no sample has an element. bare: samples without any, left out."""

    score: Mean | None
    bare: int


def check(models: Path, java: str) -> None:
    """UserError where SPICE cannot run: the folder lacks a jar, or Java has no JavaScript."""
    if lacking := [name for name in JARS if not (models / name).is_file()]:
        raise UserError(
            f"evaluate: --spice {models}: {lacking[0]} is not there. SPICE parses by Stanford CoreNLP 3.6.0, which no "
            f"package holds: unpack {SOURCE} and name the folder with {' and '.join(JARS)}."
        )
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', told.stderr + told.stdout)
    if found and int(found[1]) > _LAST_WITH_JAVASCRIPT and not list(models.glob("nashorn*.jar")):
        raise UserError(
            f"evaluate: --spice: {java} is Java {found[1]}, and SPICE's jar writes its answer with a JavaScript that "
            f"Java has lost after {_LAST_WITH_JAVASCRIPT}. Put an older Java first on PATH, or the jars of "
            f"org.openjdk.nashorn:nashorn-core and of asm, which it needs, into {models}."
        )


def scores(
    made: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], package: Path, models: Path, java: str
) -> Spice:
    """Over all keys of `wanted`.

    Args:
        made: one text a key. wanted: one or several. package: folder of pycocoevalcap. models: of CoreNLP's jars.

    Raises:
        UserError: something lacks, or the jar failed; what it says is told.
    """
    check(models, java)
    given = [
        {"image_id": number, "test": made[key][0] or _NOTHING, "refs": [text or _NOTHING for text in texts]}
        for number, (key, texts) in enumerate(wanted.items())
    ]
    folder = package / "spice"
    path = [folder / "spice-1.0.jar", *sorted((folder / "lib").glob("*.jar")), *sorted(models.glob("*.jar"))]
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary, "in.json"), Path(temporary, "out.json")
        asked.write_text(json.dumps(given))  # in ASCII: the jar reads by the locale
        command = [java, _MEMORY, "-cp", ":".join(map(str, path)), "edu.anu.spice.SpiceScorer", str(asked)]
        done = subprocess.run(
            [*command, "-out", str(answered), "-silent"], capture_output=True, text=True, check=False, cwd=temporary
        )
        if done.returncode or not answered.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise UserError(f"evaluate: --spice: Java ended with {done.returncode}: {' | '.join(said) or 'no words'}")
        found = json.loads(answered.read_text())
    return of(found, len(given))


def of(found: Sequence[Mapping[str, Any]], samples: int) -> Spice:
    """Of the jar's answers about so many samples. UserError where one is missing."""
    each = {int(one["image_id"]): one["scores"]["All"] for one in found}
    if len(each.keys() & set(range(samples))) < samples:
        raise UserError(f"evaluate: --spice: the jar has answers for {len(each):,} of {samples:,} samples.")
    known = [float(score["f"]) for score in each.values() if score["tp"] or score["fp"] or score["fn"]]
    return Spice(bootstrap_mean(known) if known else None, samples - len(known))
