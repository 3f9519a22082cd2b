"""Prompts, their truth, and the checker of the study recap_dit, on the world of recap_clip_world.

A prompt's truth is a picture: the real flag, or a generated one that the prompt describes exactly. An image follows the
prompt where it has the truth's colours (`colour`), each where the truth has it (`side`), and what is small at its place
(`object`). Colours are named by a fixed rule on hue, saturation and value: nothing in the checker is learned.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.studies.recap_clip_world import descriptions, flags
from recap.demo.build_truth import blended, colour_names
from recap.worlds.flag_captions import describe
from recap.worlds.flag_drawing import draw
from recap.worlds.flag_scenes import COLOURS, new_scene

SIDE = 16
MAIN, MINOR = 0.12, 0.02  # share of the area from which a colour counts as large; as a small thing
ATTRIBUTES = ("colour", "side", "object")
STYLES = {"names": "short prompts, seen flags", "scenes": "detailed prompts, new flags", "human": "human descriptions"}
PALETTE = np.array(
    [
        (200, 30, 40),
        (240, 130, 30),
        (250, 210, 40),
        (20, 130, 70),
        (20, 60, 160),
        (0, 0, 0),
        (250, 250, 250),
        (128, 128, 128),
    ]
)
"""A colour for each of COLOURS."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. truth: colour names, int [SIDE, SIDE]; -1 where the picture has no colour of its own."""

    key: str
    text: str
    truth: np.ndarray


def colour_indices(pixels: np.ndarray) -> np.ndarray:
    """The colour of each of uint8 [H, W, 3], as an index of COLOURS. A bright grey is white: views are shaded, and no
    flag is grey."""
    found = colour_names(pixels)
    bright = pixels.max(-1) > 150
    return np.where((found == COLOURS.index("gray")) & bright, COLOURS.index("white"), found)


def truth_of(picture: Image.Image) -> np.ndarray:
    """The colour names of a picture at SIDE x SIDE; -1 on its antialiased edges."""
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    return np.where(blended(pixels), -1, colour_indices(pixels))


def judge(pixels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """1 or 0 for each attribute; nan for `object` where the truth has nothing small.

    colour: every large colour of the truth covers at least half of its share, and no other colour is large.
    side: at least half of each large colour's places have that colour.
    object: within two pixels of each small colour's places lie at least a third as many pixels of that colour.
    """
    found, valid = colour_indices(pixels), truth >= 0
    shares = {c: float((truth[valid] == c).mean()) for c in set(truth[valid].tolist())}
    covered = {c: float((found[valid] == c).mean()) for c in range(len(COLOURS))}
    at_place = {c: float((found[truth == c] == c).mean()) for c in shares}
    near = {c: float(((found == c) & _widened(truth == c)).sum() / (truth == c).sum()) for c in shares}
    large = [c for c, share in shares.items() if share >= MAIN]
    small = [c for c, share in shares.items() if MINOR <= share < MAIN]
    foreign = [c for c, share in covered.items() if share >= MAIN and shares.get(c, 0.0) < MAIN / 2]
    return {
        "colour": float(all(covered[c] >= shares[c] / 2 for c in large) and not foreign),
        "side": float(all(at_place[c] >= 0.5 for c in large)),
        "object": float(all(near[c] >= 1 / 3 for c in small)) if small else float("nan"),
    }


def _widened(mask: np.ndarray) -> np.ndarray:
    """True within two pixels of where a mask [H, W] is."""
    padded = np.pad(mask, 2)
    shifts = [
        padded[2 + y : 2 + y + mask.shape[0], 2 + x : 2 + x + mask.shape[1]]
        for y in (-2, -1, 0, 1, 2)
        for x in (-2, -1, 0, 1, 2)
    ]
    return np.any(shifts, axis=0)


def prompts(hidden: set[str], scenes: int) -> dict[str, list[Prompt]]:
    """names: short, of the flags of training. scenes: detailed, of new generated flags, in the captions' grammar.
    human: detailed, the World Factbook's words for flags that training never showed."""
    known, told = flags(), descriptions()
    truths = {code: truth_of(picture) for code, (picture, _) in known.items()}
    seen = [code for code in sorted(known) if code not in hidden]
    made: dict[str, list[Prompt]] = {
        "names": [Prompt(code, f"Flag of {known[code][1]}", truths[code]) for code in seen],
        "scenes": [],
        "human": [Prompt(code, told[code], truths[code]) for code in sorted(hidden & set(told))],
    }
    for number in range(scenes):
        rng = random.Random(f"prompts/{number}")
        scene = new_scene(rng)
        made["scenes"].append(Prompt(f"scene-{number:03d}", describe(scene), truth_of(draw(scene, rng))))
    return made
