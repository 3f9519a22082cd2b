"""SPICE (arXiv 1607.08822): F1 of the scene graphs of captions and of their references, by its published jar.

The jar is part of pycocoevalcap. The parser that it needs, Stanford CoreNLP 3.6.0, is not: two jars in a folder that
the user names. COCO's wrapper downloads them, writes into its own package, and fails on Java 15 and later, because the
jar needs the JavaScript engine of older versions. Here nothing is downloaded, all files are in a temporary folder, and
what is missing is named. A sample whose caption and references have no elements is left out and counted; COCO counts it
as 0.
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
_NOTHING = "."  # replaces empty texts, which the jar does not accept


@dataclass(frozen=True)
class Spice:
    """score: the mean F1; None where no sample has elements. bare: samples without elements, which are left out."""

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
    """SPICE over all keys of `wanted`.

    Args:
        made: the caption of each key, as a list of one. wanted: the references of each key.
        package: folder of pycocoevalcap. models: folder of CoreNLP's jars. java: the command.

    Raises:
        UserError: something is missing, or the jar failed; its message is included.
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
        asked.write_text(json.dumps(given))  # ASCII only, since the jar decodes by the locale
        command = [java, _MEMORY, "-cp", ":".join(map(str, path)), "edu.anu.spice.SpiceScorer", str(asked)]
        done = subprocess.run(
            [*command, "-out", str(answered), "-silent"], capture_output=True, text=True, check=False, cwd=temporary
        )
        if done.returncode or not answered.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise UserError(f"evaluate: --spice: Java ended with {done.returncode}: {' | '.join(said) or 'no words'}")
        found = json.loads(answered.read_text())
    return compute(found, list(wanted))


def compute(found: Sequence[Mapping[str, Any]], samples: Sequence[Any]) -> Spice:
    """Of the jar's answers about samples, by their place. UserError where one is missing."""
    each = {int(one["image_id"]): one["scores"]["All"] for one in found}
    if len(each.keys() & set(range(len(samples)))) < len(samples):
        raise UserError(f"evaluate: --spice: the jar has answers for {len(each):,} of {len(samples):,} samples.")
    known = {
        sample: float(each[number]["f"])
        for number, sample in enumerate(samples)
        if any(each[number][part] for part in ("tp", "fp", "fn"))
    }
    return Spice(bootstrap_mean(known) if known else None, len(samples) - len(known))
