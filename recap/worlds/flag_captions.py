"""Captions of flags in a small grammar that mimics the factbook, and back: the facts a caption claims."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from recap.worlds.flag_scenes import COLOURS, SHADES, Charge, Scene

COUNTS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}{',' if len(words) > 2 else ''} and {words[-1]}"


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _opening(scene: Scene) -> str:
    bands = scene.bands
    if scene.layout == "cross":
        ground = f"{bands[0]}" if len(bands) == 1 else f"{bands[0]} and {bands[1]}"
        return f"This flag is {ground} with {_article(scene.second)} cross that extends to the edges."
    if scene.layout == "diagonal" and scene.shifted:
        if len(bands) == 1:
            return f"This flag is {bands[0]} with {_article(scene.second)} diagonal cross."
        panels = f"{bands[0]} and {bands[1]} panels"
        return f"This flag is divided by {_article(scene.second)} diagonal cross into {panels}."
    if scene.layout == "diagonal":
        by = f" by {_article(scene.second)} stripe" if scene.second else ""
        triangles = f"The upper triangle is {bands[0]} and the lower triangle is {bands[1]}."
        return f"This flag is divided diagonally{by}. {triangles}"
    if len(bands) == 1:
        return f"This flag is {bands[0]}."
    direction, first = ("vertical", "hoist side") if scene.vertical else ("horizontal", "top")
    count = COUNTS[len(bands)]
    if len(bands) >= 5 and all(band == bands[index % 2] for index, band in enumerate(bands)):
        return f"This flag has {count} {direction} stripes of {bands[0]} alternating with {bands[1]}."
    return f"This flag has {count} {direction} bands of {_listed([f'{bands[0]} ({first})', *bands[1:]])}."


def _second(scene: Scene) -> list[str]:
    told = []
    if scene.edging:
        subject = f"The {scene.bands[1]} band is" if len(scene.bands) == 3 else "The bands are"
        told.append(f"{subject} edged in {scene.edging}.")
    if scene.layout == "triangle":
        told.append(f"{_article(scene.second).capitalize()} triangle is based on the hoist side.")
    if scene.layout == "hoist":
        told.append(f"A vertical {scene.second} band is on the hoist side.")
    if scene.layout == "canton":
        what = (
            "The red, white, and blue flag of the UK"
            if scene.second == "UK"
            else f"{_article(scene.second).capitalize()} rectangle"
        )
        told.append(f"{what} is in the upper hoist-side corner.")
    if scene.layout == "cross" and scene.shifted:
        told.append("The vertical part of the cross is shifted to the hoist side.")
    if scene.second_edge:
        thing = {"triangle": "triangle", "cross": "cross", "diagonal": "stripe"}[scene.layout]
        told.append(f"The {thing} is edged in {scene.second_edge}.")
    if scene.border:
        told.append(f"The flag has {_article(scene.border)} border.")
    return told


def _charge_phrase(charge: Charge) -> str:
    if charge.kind == "coat of arms":
        return "a coat of arms"
    if charge.kind == "circle of stars":
        return f"a circle of {charge.colour} stars"
    if charge.count > 1:
        return f"{COUNTS[charge.count]} {charge.colour} {charge.kind}s"
    return _article(f"{charge.colour} {charge.kind}")


def describe(scene: Scene) -> str:
    """The caption: what is there, nothing else; longer for a busier flag."""
    sentences = [_opening(scene), *_second(scene)]
    for charge in scene.charges:
        phrase = _charge_phrase(charge)
        verb = "are" if charge.count > 1 and charge.kind == "star" else "is"
        bearing = f" and bears {_charge_phrase(charge.on)}" if charge.on else ""
        sentences.append(f"{phrase[0].upper()}{phrase[1:]} {verb} {charge.place}{bearing}.")
    return " ".join(sentences)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a caption claims: colours (of COLOURS), a layout (of LAYOUTS, "" if none is told), bands or ()."""

    colours: frozenset[str]
    layout: str
    bands: tuple[str, ...]


_COLOUR_WORD = re.compile(
    r"\b(" + "|".join(sorted([*SHADES, *COLOURS], key=len, reverse=True)).replace(" ", r"[ -]") + r")\b",
    re.IGNORECASE,
)
_BANDS = re.compile(r"\b(?:bands|stripes) (?:consisting )?of ([^.;]*)", re.IGNORECASE)
_RULES = (
    (
        "canton",
        r"flag of the UK|Union Jack|(rectangle|square)[^.;]*upper (hoist|corner)|"
        r"upper hoist[^.;]*(rectangle|square)|canton",
    ),
    ("triangle", r"triangle[^.;]*(based on|on the hoist|hoist)|trapezoid"),
    ("hoist", r"vertical( \w+){0,2} (band|stripe)[^.;]*on (the )?hoist|serrated band"),
    ("diagonal", r"diagonal|oblique"),
    ("cross", r"cross\b[^.;]*(edges|extend)|cross of Saint George"),
    ("vertical", r"vertical( \w+)? (bands|stripes)|vertical bands"),
    ("horizontal", r"horizontal( \w+)? (bands|stripes|band|stripe)|horizontal"),
)


def colours_in(text: str) -> list[str]:
    """Colour names in the order of the text, shades under their main name."""
    words = (match[1].lower().replace("-", " ") for match in _COLOUR_WORD.finditer(text))
    return [SHADES.get(word, word) for word in words]


def layout_in(text: str) -> str:
    """The layout class that a caption tells, by the first rule that matches; "" for an empty caption."""
    for layout, rule in _RULES:
        if re.search(rule, text, re.IGNORECASE):
            return layout
    return "field" if colours_in(text) else ""


def bands_in(text: str) -> tuple[str, ...]:
    """Colours of "three horizontal bands of red (top), white, and blue", in order."""
    match = _BANDS.search(text)
    if not match:
        return ()
    listing = re.split(r"\bwith (?!red|white|blue|green|yellow|black|orange|light)|\bcentered\b", match[1])[0]
    bands = colours_in(listing)
    counted = re.search(r"\b(" + "|".join(COUNTS[5:]) + r")\b", text, re.IGNORECASE)
    if "alternating with" in listing and len(bands) == 2 and counted:
        return tuple(bands[index % 2] for index in range(COUNTS.index(counted[1].lower())))
    return tuple(bands)


def parse(caption: str) -> Facts:
    """The facts a caption claims. Exact on our own grammar, a fair reading of the factbook's."""
    layout = layout_in(caption)
    banded = layout in ("horizontal", "vertical")
    return Facts(frozenset(colours_in(caption)), layout, bands_in(caption) if banded else ())
