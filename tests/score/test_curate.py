"""The shipped curation over a world with planted faults: each is found by its rule, the best share is exact, the page
of what was dropped shows pictures of every reason in a browser.
"""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpc.base.errors import Exit
from hpc.operator import OK
from hpc.pipeline import definition as pipeline
from recap.worlds.tars import write_tar
from tests.score.conftest import write_clip
from tests.support.browser import Browser
from tests.support.jobs import ROOT, inline
from tests.support.published import published, rows_of

SAMPLES = 60
FAULTS = {  # by number of the sample
    3: "narrow", 4: "low", 5: "long", 6: "plain", 7: "words", 8: "language", 9: "image: not an image",
    **dict.fromkeys(range(40, 52), "shared"),
}  # fmt: skip
NOUNS = "tree house river bridge street garden mountain window table horse market harbour".split()  # noqa: SIM905


def picture(number: int) -> bytes:
    size = {3: (150, 220), 4: (220, 150), 5: (700, 210)}.get(number, (220, 210))
    noise = Image.frombytes("RGB", (12, 12), random.Random(number).randbytes(432)).resize(size)
    if number == 6:
        noise = Image.new("RGB", size, "white")
        noise.paste((200, 20, 20), (60, 60, 120, 140))
    out = io.BytesIO()
    noise.save(out, "PNG")
    return b"<html>" if number == 9 else out.getvalue()


def text(number: int) -> str:
    if FAULTS.get(number) == "shared":
        return "The latest news and pictures from all around the world"
    rng = random.Random(number)
    said = f"A photo of the old {rng.choice(NOUNS)} near a {rng.choice(NOUNS)} in the year {1900 + number}"
    return {7: "IMG_0042", 8: "Ein altes Haus steht neben einer kleinen Brücke über den Fluss"}.get(number, said)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the pipeline, every stage done, its commands as they are shipped."""
    folder = tmp_path_factory.mktemp("curate")
    with (folder / "0.tar").open("wb") as file:
        write_tar(file, ((f"{n:03d}", {"png": picture(n), "txt": text(n).encode()}) for n in range(SAMPLES)))
    write_clip(folder / "clip")
    given = [f"runs={folder.parent}", f"name={folder.name}", "cluster=local"]
    for name, stage in pipeline.load(ROOT / "configs/systems/curate.yaml", given).stages.items():
        if stage.config is None:
            (folder / name).mkdir()
            done = inline(stage.command[2], *stage.command[3:])
            assert done.returncode == Exit.COMPLETE, done.stderr
            continue
        tree: dict[str, Any] = {**stage.config.resolved, "runs": str(folder), "name": name}
        tree["cluster"] = {"kind": "local"}
        if tree["data"].get("shards"):
            tree["data"]["shards"] = [str(folder / "0.tar")]
        if name in ("facts", "scores"):
            tree["decode_workers"] = 0
        if name == "scores":
            tree["scorers"]["clip"]["clip"]["model"] = str(folder / "clip")
        published(tree)
    return folder


def test_every_fault_is_dropped_by_its_rule(curated: Path) -> None:
    """An image that is none has no facts, which the first rule says; reasons add up."""
    rows = rows_of(curated / "clean")
    for number, row in enumerate(rows):
        wanted = FAULTS.get(number, "")
        assert row["reason"] == ("narrow: no value" if wanted.startswith("image") else wanted), number
        assert row["caption"] == (None if wanted else text(number))
    scored = [row["clip_alt"] for row in rows_of(curated / "scores") if row["status"] == OK]
    assert len(scored) == SAMPLES - len(FAULTS)  # nothing else was looked at
    selected = Counter(row["reason"] for row in rows_of(curated / "selected"))
    best = round(0.3 * len(scored))
    assert selected == {"": best, "clip": len(scored) - best, "clip: no value": len(FAULTS)}


def test_the_page_shows_what_was_dropped(curated: Path, tmp_path: Path) -> None:
    page = curated / "dropped" / "dropped.html"
    dom = Browser(tmp_path).dom(page)
    rows = dict(re.findall(r"<td>([^<]*)</td><td class=\"n\">([\d,]+)</td>", dom))
    clean = Counter(reason if not reason.startswith("image") else "narrow: no value" for reason in FAULTS.values())
    left = SAMPLES - len(FAULTS)
    assert {reason: int(count) for reason, count in rows.items()} == {
        **clean, "": round(0.3 * left), "clip": left - round(0.3 * left),
    }  # fmt: skip
    headings = re.findall(r"<h2>([^<]*)</h2>", dom)
    assert headings[0] == f"kept · {round(0.3 * left)}" and "clean: shared · 12" in headings
    assert "Ein altes Haus" in dom and "no picture" in dom and "<script" not in dom
    assert dom.count("<img") == 6 + 6 + 6 + len(clean) - 2  # kept, clip and shared have more than are shown
    shot = Browser(tmp_path).picture(page, height=3000)
    colours = np.unique(np.asarray(shot.resize((300, 750))).reshape(-1, 3), axis=0)
    assert len(colours) > 500  # the pictures are there


def test_selections_of_other_samples_are_refused(curated: Path, tmp_path: Path) -> None:
    done = inline("recap.dropped", str(curated / "clean"), str(tmp_path))
    assert done.returncode == Exit.USAGE and "is not a run directory" in done.stderr
