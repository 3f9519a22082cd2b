"""The selecting stages of shipped systems, on columns whose truth is known."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.base.errors import Exit
from hpc.pipeline import definition as pipeline
from recap.worlds import shape_claims, shape_scenes, shapes
from recap.worlds.tars import write_tar
from tests.data.corpus import build, keys
from tests.select.worlds import given, kept
from tests.support.jobs import ROOT, inline
from tests.support.published import published, rows_of

COUNT = 20


def stages(folder: Path, system: str) -> Any:
    names = [f"runs={folder.parent}", f"name={folder.name}", "cluster=local"]
    return pipeline.load(ROOT / f"configs/systems/{system}.yaml", names).stages


def work_off(folder: Path, system: str, name: str, **changes: Any) -> list[dict[str, Any]]:
    stage = stages(folder, system)[name]
    if stage.config is None:
        (folder / name).mkdir()
        assert inline(stage.command[2], *stage.command[3:]).returncode == Exit.COMPLETE
        return []
    tree: dict[str, Any] = {**stage.config.resolved, "runs": str(folder), "name": name, "cluster": {"kind": "local"}}
    if tree["data"].get("shards"):
        tree["data"]["shards"] = [str(folder / "tars")]
    return rows_of(published(tree | changes))


def test_nguyens_rule_from_its_config(tmp_path: Path) -> None:
    """Raw texts among the best 30 %, the synthetic one of others where it passes, nothing of the rest."""
    build(tmp_path, [COUNT])
    raw, syn = ([(number * step % COUNT) / COUNT for number in range(COUNT)] for step in (7, 3))
    found = keys(0, COUNT)
    given(tmp_path, "syn", {key: {"caption": f"syn {key}"} for key in found})
    scores = {key: {"clip_org": r, "clip_re": s} for key, r, s in zip(found, raw, syn, strict=True)}
    given(tmp_path, "scores", scores)
    work_off(tmp_path, "nguyen", "edges")
    rows = work_off(tmp_path, "nguyen", "chosen")
    best = sorted(raw)[-round(0.3 * COUNT)]
    for key, r, s, row in zip(found, raw, syn, rows, strict=True):
        wanted = ("raw", f"alt {key}") if r >= best else ("syn", f"syn {key}") if s >= 0.28 else (None, None)
        assert (row["source"], row["caption"]) == wanted
    assert {row["source"] for row in rows} == {"raw", "syn", None}


@pytest.mark.parametrize("missing", [False, True])
def test_the_two_truest_captions_are_fused(tmp_path: Path, missing: bool) -> None:
    """Scored by the world's own truth: a is true, b has one planted fault, c is another scene's."""
    build(tmp_path, [COUNT])
    found = keys(0, COUNT)
    scenes = [shapes.sample(7, number, side=48).scene for number in range(COUNT + 1)]
    texts = {
        "a": [shapes.caption(scene, "short") for scene in scenes[:-1]],
        "b": [_one_fault(shapes.caption(scene, "short")) for scene in scenes[:-1]],
        "c": [shapes.caption(scene, "short") for scene in scenes[1:]],
    }
    truth: dict[str, list[float]] = {
        name: [_true(text, scene) for text, scene in zip(found_texts, scenes, strict=False)]
        for name, found_texts in texts.items()
    }
    for name, values in texts.items():
        given(tmp_path, name, {key: {"caption": v} for key, v in zip(found, values, strict=True)})
    scores: dict[str, dict[str, float | None]] = {
        key: {f"clip_{name}": values[n] for name, values in truth.items()} for n, key in enumerate(found)
    }
    if missing:
        scores[found[3]]["clip_a"] = None
    else:
        assert all(truth["a"][n] == 1.0 > truth["b"][n] for n in range(COUNT))
    given(tmp_path, "scores", scores)
    rows = work_off(tmp_path, "rank_fuse", "two")
    for number, (key, row) in enumerate(zip(found, rows, strict=True)):
        known = {name: value for name in "abc" if (value := scores[key][f"clip_{name}"]) is not None}
        first, second = sorted(known, key=lambda name: (-known[name], name))[:2]
        assert (row["source"], row["source_2"]) == (first, second)
        assert (row["caption"], row["caption_2"]) == (texts[first][number], texts[second][number])


def test_nocs_levels_are_equally_wide(tmp_path: Path) -> None:
    """Eight bins between the least and the largest cosine, as numpy cuts them; a value on an edge is in the upper."""
    count = 33
    build(tmp_path, [count])
    found = keys(0, count)
    cosines = [0.125 + 0.25 * number / 32 for number in range(count)]  # every fourth lies on an edge, exactly
    random.Random(0).shuffle(cosines)
    given(tmp_path, "scores", {key: {"clip_alt": value} for key, value in zip(found, cosines, strict=True)})
    work_off(tmp_path, "noc", "edges")
    levels = [row["level"] for row in work_off(tmp_path, "noc", "levels")]
    inner = np.linspace(min(cosines), max(cosines), 9)[1:-1]
    assert levels == np.digitize(cosines, inner).tolist() and set(levels) == set(range(8))
    on_edges = {value: level for value, level in zip(cosines, levels, strict=True) if value in inner}
    assert len(on_edges) == 7 and sorted(on_edges.values()) == list(range(1, 8))


def test_compress_and_align_keeps_the_preferred_twelfth(tmp_path: Path) -> None:
    """12 % of the pairs, exactly: those of the largest scores."""
    count = 100
    build(tmp_path, [count])
    found = keys(0, count)
    scores = random.Random(1).sample(range(1000), count)
    given(tmp_path, "scores", {key: {"preference_alt": score / 1000} for key, score in zip(found, scores, strict=True)})
    work_off(tmp_path, "compress_align", "edges")
    rows = work_off(tmp_path, "compress_align", "kept")
    assert kept(rows) == [key for key, score in zip(found, scores, strict=True) if score in sorted(scores)[-12:]]
    assert {row["reason"] for row in rows} == {"", "preferred"}


def test_sail_wants_both_judges_ratings(tmp_path: Path) -> None:
    """A caption that tells much and one that fits; a rating that could not be read is not one."""
    build(tmp_path, [6])
    found = keys(0, 6)
    informative, aligned = (5, 2, 3, 5, None, 4), (5, 5, 3, 2, 5, None)
    for name, ratings in (("informative", informative), ("aligned", aligned)):
        values = {key: {"rating": r} for key, r in zip(found, ratings, strict=True) if r is not None}
        given(tmp_path, name, values)
    rows = work_off(tmp_path, "sail", "kept")
    reasons = [row["reason"] for row in rows]
    assert reasons == ["", "informative", "", "aligned", "informative: no value", "aligned: no value"]


# Number of the sample: the rule by which it goes, and what is wrong with it.
ALIGN: dict[int, tuple[str, dict[str, float]]] = {
    1: ("narrow", {"width": 200}), 2: ("low", {"height": 199}), 3: ("long", {"aspect": 3.0}),
    4: ("words", {"words_alt": 2}), 5: ("words", {"words_alt": 21}),
    **dict.fromkeys(range(6, 17), ("shared", {"digest_alt": 77})),
}  # fmt: skip


def test_aligns_rules_from_its_config(tmp_path: Path) -> None:
    """Sides above 200 pixels, an aspect below 3, 3 to 20 words, a text of at most ten images; reasons add up."""
    build(tmp_path, [30])
    found = keys(0, 30)
    plain = {"width": 640, "height": 400, "aspect": 1.6, "words_alt": 9}
    facts = {
        key: {**plain, "digest_alt": 1000 + number // 10, **ALIGN.get(number, ("", {}))[1]}
        for number, key in enumerate(found)
    }
    given(tmp_path, "facts", facts)
    work_off(tmp_path, "align", "shared")
    reasons = [row["reason"] for row in work_off(tmp_path, "align", "clean")]
    assert reasons == [ALIGN.get(number, ("",))[0] for number in range(30)]


def test_lgs_rules_from_its_config(tmp_path: Path) -> None:
    """Languages, lengths, listed words, hosts, sizes, grounds: each by its rule, none else; the page counts them."""
    plain = {
        "language_alt": "en", "words_alt": 8, "leaks_alt": 0, "width": 400, "height": 400, "uniform": 0.9,
    }  # fmt: skip
    faults: dict[int, tuple[str, dict[str, Any]]] = {
        1: ("language", {"language_alt": "de"}), 2: ("words", {"words_alt": 2}), 3: ("words", {"words_alt": 101}),
        4: ("listed", {"leaks_alt": 1}), 5: ("host", {}), 6: ("narrow", {"width": 99}), 7: ("low", {"height": 99}),
        8: ("busy", {"uniform": 0.49}), 9: ("host: no value", {}),
    }  # fmt: skip
    hosts = {5: "ads.example.com", 9: None}
    (tmp_path / "tars").mkdir()
    with (tmp_path / "tars" / "0.tar").open("wb") as file:
        about = ({"host": hosts.get(number, "shop.example.com")} for number in range(12))
        write_tar(
            file,
            (
                (f"{number:03d}", {"jpg": bytes([number]), "txt": b"A text", "json": json.dumps(said).encode()})
                for number, said in enumerate(about)
            ),
        )
    facts = {f"{number:03d}": plain | faults.get(number, ("", {}))[1] for number in range(12)}
    given(tmp_path, "facts", facts)
    rows = work_off(tmp_path, "lgs", "clean")
    assert [row["reason"] for row in rows] == [faults.get(number, ("",))[0] for number in range(12)]
    work_off(tmp_path, "lgs", "dropped")
    page = (tmp_path / "dropped" / "dropped.html").read_text()
    assert all(reason in page for reason, _ in faults.values())


def _true(text: str, scene: Any) -> float:
    """Share of a text's facts that are right of a scene."""
    verdicts = shape_claims.judge(text, scene).verdicts
    return sum(verdict.right for verdict in verdicts) / max(1, len(verdicts))


def _one_fault(text: str) -> str:
    """Its first colour is another."""
    found = re.search("|".join(shape_scenes.COLOURS), text)
    assert found is not None
    other = next(colour for colour in shape_scenes.COLOURS if colour != found[0])
    return text[: found.start()] + other + text[found.end() :]
