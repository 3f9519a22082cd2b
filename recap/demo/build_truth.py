"""Write flags_truth.csv: what is really on each flag, to score captions against.

    python -m recap.demo.build_truth

One row a flag that has a description and a picture of its own (a picture that several territories show counts
once). The columns:

iso, name   from the shipped tars.
split       frozen: "train" if the first byte of sha256("flags/" + iso) is below 90 (35 %), else "heldout".
layout      a class of `recap.worlds.flag_scenes.LAYOUTS`, or "other": drafted from the factbook text with
            `flag_captions.parse`, then every flag was looked at and corrected by hand (LAYOUT below).
            Where text and picture disagree (Mauritania changed its flag), the picture counts.
bands       for horizontal and vertical flags: main band colours from the top or the hoist, by hand; thin
            edgings left out; empty where the bands cannot be counted (Kiribati's waves).
colours     from the pixels: each is mapped to one of eight names by hue, saturation and value; pixels that
            only blend their two neighbours (antialiasing) are left out. "name:share", largest first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from hpc.base.errors import Parser
from recap.demo import DESCRIPTIONS, FLAGS, FLAGS_TRUTH
from recap.worlds.flag_scenes import COLOURS

LETTERS = {"r": "red", "o": "orange", "y": "yellow", "g": "green", "b": "blue", "k": "black", "w": "white"}
BORROWED_PICTURES = {"pm": "France's", "sh": "the UK's"}
"""Territories whose text describes a local flag that the picture does not show."""

LAYOUT = {
    "horizontal": (
        "am:rbo ao:rk ar:bwb at:rwr aw:bybyb az:brg bf:rg bg:wgr bo:ryg bw:bkb bz:rbr cf:bwgy co:ybr "
        "cr:bwrwb cv:bwrwb cw:byb de:kry ec:ybr ee:bkw eg:rwk es:ryr et:gyr ga:gyb gh:ryg gi:wr gl:wr "
        "gm:rbg hn:bwb hr:rwb ht:br hu:rwg id:rw il:wbwbw in:owg iq:rwk ir:gwr ke:krg kh:brb ki: kp:brb "
        "la:rbr lb:rwr li:br ls:bwg lt:ygr lu:rwb lv:rwr ly:rkg mc:rw mm:ygr mr:rgr mu:rbyg mw:krg nc:brg "
        "ne:owg ni:bwb nl:rwb nr:byb pf:rwr pl:wr py:rwb rs:rbw ru:wbr rw:byg sg:rw si:wbr sk:wbr sl:gwb "
        "sm:wb sr:gwrwg sv:bwb sy:rwk sz:brb th:rwbwr tj:rwg ua:by ug:kyrkyr uz:bwg ve:ybr ye:rwk"
    ),
    "vertical": (
        "ad:byr af:krg bb:byb be:kyr ca:rwr ci:owg cm:gry dz:gw fr:bwr gn:ryg gt:bwb ie:gwo it:gwr md:byr "
        "ml:gyr mn:rbr mt:wr mx:gwr nf:gwg ng:gwg pe:rwr pt:gr ro:byr sn:gyr td:byr va:yw vc:byg"
    ),
    "triangle": "bs cu cz dj er gq gy jo km kw mz ph pr sd ss st sx tl vu za zw",
    "hoist": "ae bh bj by gw mg om pk qa tm",
    "canton": "ai au bm ck cl fj fk gr gs io ky lr ms my nu nz pn tc tg to tv tw us uy vg wf ws",
    "cross": "dk dm do fi fo gb ge gg is no se",
    "diagonal": "bi bn bt cd cg cx gd je jm kn mh na pg sb sc tt tz",
    "field": (
        "al bd br ch cn cy eu fm gu hk im jp kg kr kz lc ma me mk mo mp mv pw sa so tk tn tr vi vn xk zm"
    ),
    "other": "ag as ba lk np pa",
}  # fmt: skip
"""layout -> "iso" or "iso:bands" (letters of LETTERS), checked by eye on the shipped pictures."""


def split(iso: str) -> str:
    """Frozen, and independent of which other flags exist."""
    return "train" if hashlib.sha256(f"flags/{iso}".encode()).digest()[0] < 90 else "heldout"


def colour_names(pixels: np.ndarray) -> np.ndarray:
    """RGB bytes (H, W, 3) -> index into COLOURS (H, W).

    Light and dark shades share a name; brown is orange.
    """
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), dtype=float)
    hue, saturation, value = hsv[..., 0] * 360 / 255, hsv[..., 1] / 255, hsv[..., 2] / 255
    bounds = [13, 42, 70, 178, 280, 361]
    names = np.array([COLOURS.index(name) for name in ("red", "orange", "yellow", "green", "blue", "red")])
    found = names[np.digitize(hue, bounds)]
    found = np.where((hue > 34) & (hue < 42) & (saturation < 0.75), COLOURS.index("yellow"), found)  # old gold
    found = np.where(saturation < 0.17, COLOURS.index("gray"), found)
    found = np.where((saturation < 0.17) & (value > 0.8), COLOURS.index("white"), found)
    return np.where((value < 0.22) | ((value < 0.3) & (saturation < 0.4)), COLOURS.index("black"), found)


def blended(pixels: np.ndarray) -> np.ndarray:
    """True (H, W) where a pixel lies between its two neighbours, across or down: an antialiased edge, no
    colour of its own.
    """
    rgb = pixels.astype(float)
    mask = np.zeros(rgb.shape[:2], dtype=bool)
    for axis in (0, 1):
        before, after = np.roll(rgb, 1, axis), np.roll(rgb, -1, axis)
        span = after - before
        length = (span**2).sum(-1)
        along = ((rgb - before) * span).sum(-1) / np.maximum(length, 1)
        away = np.abs(rgb - before - along[..., None] * span).max(-1)
        mask |= (length > 40**2) & (along > 0.08) & (along < 0.92) & (away < 24)
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = False
    return mask


def colour_shares(picture: Image.Image) -> dict[str, float]:
    """Colour name -> share of the area, largest first; antialiased edges left out."""
    pixels = np.asarray(picture.convert("RGB"))
    names = colour_names(pixels)[~blended(pixels)]
    counts = np.bincount(names, minlength=len(COLOURS)) / max(1, names.size)
    return {COLOURS[index]: float(counts[index]) for index in np.argsort(-counts, kind="stable") if counts[index] > 0}


def pictures(flags: Path) -> Iterator[tuple[str, str, bytes]]:
    """(iso, name, PNG bytes) of every sample of the shipped tars."""
    for path in sorted(flags.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, data in files.items():
            if name.endswith(".json"):
                about = json.loads(data)
                yield about["iso"], about["name"], files[f"{about['iso']}.png"]


def layouts() -> dict[str, tuple[str, list[str]]]:
    """iso -> (layout, band colours) from LAYOUT."""
    table = {}
    for layout, listing in LAYOUT.items():
        for entry in listing.split():
            iso, _, letters = entry.partition(":")
            assert iso not in table, iso
            table[iso] = (layout, [LETTERS[letter] for letter in letters])
    return table


def main() -> None:
    Parser(description=__doc__).parse_args()
    described = set()
    for path in sorted(DESCRIPTIONS.glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        described |= {row["key"] for row in rows if row["status"] == "ok"} - set(BORROWED_PICTURES)
    table = layouts()
    with FLAGS_TRUTH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iso", "name", "split", "layout", "bands", "colours"])
        for iso, name, png in pictures(FLAGS):
            if iso not in described:
                continue
            layout, bands = table.pop(iso)
            shares = colour_shares(Image.open(io.BytesIO(png)))
            colours = " ".join(f"{colour}:{share:.4f}" for colour, share in shares.items() if share >= 0.0005)
            writer.writerow([iso, name, split(iso), layout, " ".join(bands), colours])
    if table:
        sys.exit(f"no described picture for {sorted(table)}")


if __name__ == "__main__":
    main()
