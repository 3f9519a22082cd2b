"""The world of recap_clip_scenes.yaml: scenes of real pictograms whose truth is known (recap.worlds.emoji).

The alt-text names the large sprite's brand (60 %), is boilerplate (20 %), or names a wrong brand (20 %). The captioner
is trained by an ordinary SFT job on scenes of another seed; its recaptions come from an ordinary caption job over
these tars. Half of the test scenes hold pairs of sprites that no scene of either training has.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.studies.recap_clip_world import (
    View,
    caption,
    captions,
    encode,
    retrieval,
    test_views,
    write_controls,
    write_shards,
    zero_shot,
)
from recap.evaluate.captioner import wilson
from recap.worlds import emoji

CONFIG = Path(__file__).parents[2] / "configs" / "sft" / "emoji.yaml"


class Scenes:
    """As `recap_clip_world.Flags`, on scenes; a view's code is its large sprite."""

    metrics: ClassVar[dict[str, str]] = {
        "names_top1": "zero-shot by brand name, top 1",
        "recaption_r5": "retrieval by our captioner's words, R@5",
        "paraphrase_r5": "retrieval by unseen paraphrases, R@5",
        "unseen_r5": "retrieval by paraphrases, pairs of sprites not seen, R@5",
    }

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def build(self) -> None:
        """Write train/*.tar and test/*.tar (jpg, txt, cls, json), train the captioner, write the run `captions` over
        both, and the controls' columns."""
        s = self.settings
        samples: dict[str, list[tuple[str, dict[str, bytes]]]] = {"train": [], "test": []}
        told: dict[str, str] = {}
        for part, seed, count, apart in (
            ("train", s["seed"], s["scenes"], False),
            ("test", s["seed"] + 1, s["test_scenes"], False),
            ("test", s["seed"] + 1, s["test_scenes"], True),
        ):
            for index in range(count):
                key = f"{part}-{'apart' if apart else 'plain'}-{index:05d}"
                scene, picture, told[key] = emoji.sample(seed, index, apart=apart)
                samples[part].append((key, _files(scene, picture, random.Random(f"alt/{seed}/{key}"))))
        write_shards(self.folder, samples, random.Random(s["seed"]))
        command = [sys.executable, "-m", "hpc.launch", str(CONFIG), f"runs={self.folder}", "name=captioner"]
        subprocess.run(command, check=True)
        caption(self.folder, self.folder / "captioner" / "exports" / "final")
        alts = {key: files["txt"].decode() for key, files in samples["train"]}
        write_controls(self.folder, alts, "oracle", told)

    def texts(self) -> list[str]:
        """All words that the tokenizer must know."""
        made = [emoji.sample(-1, index) for index in range(1000)]
        told = [text for scene, _, text in made for text in (text, *_paraphrases(scene))]
        alts = [text.replace("{}", "") for text in (*emoji.BOILERPLATE, *emoji.NAMED)]
        return [*captions(self.folder, "train").values(), *told, *alts, *emoji.BRANDS.values()]

    def score(self, encoder: Any, views: Sequence[View]) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Of each metric 0 or 1 for every view (nan where it is not asked); of queries the share that was cut."""
        images, keys, own = encode(encoder, views), [view.key for view in views], captions(self.folder, "test")
        hits = {"names_top1": zero_shot(encoder, images, [view.code for view in views], emoji.BRANDS)}
        texts, cut = encoder.texts([own[key] or "" for key in keys])
        hits["recaption_r5"] = retrieval(images, texts, keys)
        texts, cut_too = encoder.texts([_paraphrases(_scene(view))[i % 3] for i, view in enumerate(views)])
        for name, apart in (("paraphrase_r5", False), ("unseen_r5", True)):
            chosen = [place for place, key in enumerate(keys) if ("apart" in key) == apart]
            found = retrieval(images[chosen], texts[chosen], [keys[place] for place in chosen])
            hits[name] = [float("nan")] * len(views)
            for place, hit in zip(chosen, found, strict=True):
                hits[name][place] = hit
        return hits, {"recaption": cut, "paraphrase": cut_too}

    def facts(self) -> str:
        """How many test scenes the captioner told rightly, by kind of fact."""
        own, views = captions(self.folder, "test"), test_views(self.folder)
        lines = ["", "test scenes that the captioner told rightly (95 % Wilson interval)"]
        for name, apart in (("ordinary pairs", False), ("pairs it never saw", True)):
            found = [emoji.judge(own[v.key] or "", _scene(v)) for v in views if ("apart" in v.key) == apart]
            for fact in found[0]:
                right = sum(verdict[fact] for verdict in found)
                low, high = wilson(right, len(found))
                lines.append(f"{name}, {fact}: {right / len(found):.1%} ({low:.1%}-{high:.1%}) of {len(found)}")
        return "\n".join(lines) + "\n"


def _files(scene: emoji.Scene, picture: Any, rng: random.Random) -> dict[str, bytes]:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=rng.randint(70, 95))
    alt, truth = emoji.alt_text(scene, rng), json.dumps(emoji.truth(scene))
    return {"jpg": out.getvalue(), "txt": alt.encode(), "cls": scene.sprites[0].name.encode(), "json": truth.encode()}


def _scene(view: View) -> emoji.Scene:
    return emoji.scene_from_json(json.loads(view.members["json"]))


def _paraphrases(scene: emoji.Scene) -> list[str]:
    return [emoji.paraphrase(scene, number) for number in range(len(emoji.PARAPHRASES))]
