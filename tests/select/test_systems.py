"""The selecting stages of shipped systems, on columns whose truth is known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import Exit
from hpc.pipeline import definition as pipeline
from recap.worlds import shape_claims, shape_scenes, shapes
from tests.data.corpus import build, keys
from tests.select.worlds import given
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
