"""Statistics over all rows of a run that rules of a selection need: one file, made between a scoring and a selecting
job.

    python -m recap.select.statistics runs/scores --top clip_alt=0.3 --out edges.json      edge of the best 30 %
    python -m recap.select.statistics runs/scores --bins clip_alt=8 --out edges.json       8 bins of equally many rows
    python -m recap.select.statistics runs/scores --uniform clip_alt=8 --out edges.json    8 bins of equal width
    python -m recap.select.statistics runs/scores --shared digest_alt=10 --out edges.json  values of more than 10 rows
    python -m recap.select.statistics runs/facts --shared phash=1:4 --out edges.json       ... where hashes that differ
                                                                                     in at most 4 bits are one value

Flags may be repeated. Edges are exact values of rows, however many rows there are. Each field is read once for its
range, once for repeated values, and four times for edges. Rows without a value (null, NaN, infinite; rows that are not
ok) do not count. --shared counts numbers and texts; texts that differ only in case and white space are equal.

Exit codes: 0 written, 1 the run is not complete, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from hpc.base import atomic
from hpc.base.command import command, console, warn
from hpc.base.errors import Exit, Parser, UserError
from hpc.operator import OK
from hpc.run.published import Published, PublishedShard
from recap.data.texts import text_digest
from recap.select.near import NearDuplicates
from recap.select.order import RankedValue, Summary, at_ranks
from recap.select.repeated import Repeated
from recap.select.settings import FARTHEST
from recap.select.statistics_file import VERSION, made_of, packed, shared_name

KINDS = ("top", "bins", "uniform", "shared")
_READERS = 8

Requests = dict[str, dict[str, list[Any]]]
"""The statistics to make, by kind and field: shares, numbers of bins, or (number of rows, distance)."""


class Field:
    """Reads one field of a run's finished shards."""

    def __init__(self, published: Published, name: str) -> None:
        self._published, self.name = published, name

    def tables(self) -> Iterator[tuple[PublishedShard, pa.Table]]:
        """(shard, its rows that are ok: key, the field, status), in order, read ahead by threads."""
        with ThreadPoolExecutor(_READERS) as pool:
            shards = list(self._published)
            for start in range(0, len(shards), 4 * _READERS):
                part = shards[start : start + 4 * _READERS]
                yield from zip(part, pool.map(self._table, part), strict=True)

    def numbers(self) -> Iterator[np.ndarray]:
        """float64 parts, without NaN and infinities."""
        for shard, table in self.tables():
            kind = table.schema.field(self.name).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise UserError(f"select: {self.name} of {shard.run} is a {kind}: edges are of numbers.")
            values = table[self.name].drop_null().to_numpy().astype(np.float64)
            yield values[np.isfinite(values)]

    def summary(self) -> Summary:
        found = Summary()
        for part in self.numbers():
            found.add(part)
        if not found.count:
            raise UserError(f"select: no row of {self._published.run.path} has a value of {self.name}.")
        return found

    def _table(self, shard: PublishedShard) -> pa.Table:
        table = shard.table(["key", self.name, "status"])
        return table.filter(pc.equal(table["status"], OK))


def value_digest(value: Any) -> int:
    """A value as a signed 64-bit integer: an integer itself, a text's `text_digest`, of others that of their repr."""
    return value if isinstance(value, int) else text_digest(value if isinstance(value, str) else repr(value))


def value_digests(values: pa.ChunkedArray) -> np.ndarray:
    """`value_digest` of a column, int64."""
    if pa.types.is_integer(values.type):
        return values.to_numpy().astype(np.int64)
    return np.array([value_digest(value) for value in values.to_pylist()], np.int64)


def place_digests(shard: str, keys: Sequence[str]) -> np.ndarray:
    """int64 [rows]: a digest of each row's shard and key, by which a selection recognises a row."""
    return np.array([text_digest(f"{shard}/{key}") for key in keys], np.int64)


def tops(field: Field, shares: Sequence[float], count: int) -> dict[str, dict[str, Any]]:
    """By share: the edge of the largest values, how many values are above it, and how many at it.

    Args:
        count: number of values of the field.
    """
    ranks = [count - max(1, round(share * count)) for share in shares]
    found = at_ranks(field.numbers, ranks)
    return {repr(s): _top(place, count) for s, place in zip(shares, found, strict=True)}


def _top(place: RankedValue, count: int) -> dict[str, Any]:
    return {"edge": place.value, "above": count - place.below - place.equal, "at": place.equal}


def quantiles(field: Field, bins: Sequence[int], count: int) -> dict[str, list[float]]:
    """By number of bins: the inner edges. Edge i of n is the value at rank i x count // n, from the smallest on."""
    ranks = {number: [i * count // number for i in range(1, number)] for number in bins}
    everything = sorted({rank for found in ranks.values() for rank in found})
    values = {rank: place.value for rank, place in zip(everything, at_ranks(field.numbers, everything), strict=True)}
    return {str(number): [values[rank] for rank in found] for number, found in ranks.items()}


def uniform(bins: Sequence[int], seen: Summary) -> dict[str, list[float]]:
    """By number of bins: the inner edges of equally wide bins between the smallest and the largest value."""
    return {str(number): np.linspace(seen.least, seen.greatest, number + 1)[1:-1].tolist() for number in bins}


def shared(field: Field, limits: Sequence[int], distance: int, folder: Path) -> dict[str, dict[str, Any]]:
    """By limit: the values that more rows have. distance: bits in which hashes of one value may differ."""
    with NearDuplicates(folder, distance) if distance else Repeated(folder) as counted:
        for shard, table in field.tables():
            kind = table.schema.field(field.name).type
            if distance and kind != pa.int64():
                raise UserError(f"select: {field.name} of {shard.run} is a {kind}: distances are between int64 hashes.")
            has = pc.is_finite(table[field.name]) if pa.types.is_floating(kind) else pc.is_valid(table[field.name])
            table = table.filter(has)
            counted.add(value_digests(table[field.name]), place_digests(shard.shard.id, table["key"].to_pylist()))
        found = counted.more_than(limits)
    return {
        shared_name(limit, distance): {"values": packed(values), "first": packed(first), "rows": rows}
        for limit, (values, first, rows) in found.items()
    }


def statistics(published: Published, wanted: Requests, folder: Path) -> dict[str, Any]:
    """The content of a statistics file.

    Args:
        folder: for temporary files.
    """
    made: dict[str, Any] = {"version": VERSION, "made_of": made_of(published), "fields": {}} | {k: {} for k in KINDS}
    for name in sorted({name for kind in ("top", "bins", "uniform") for name in wanted[kind]}):
        field = Field(published, name)
        seen = field.summary()
        made["fields"][name] = {"rows": seen.count, "least": seen.least, "greatest": seen.greatest}
        if name in wanted["top"]:
            made["top"][name] = tops(field, wanted["top"][name], seen.count)
        if name in wanted["bins"]:
            made["bins"][name] = quantiles(field, wanted["bins"][name], seen.count)
        if name in wanted["uniform"]:
            made["uniform"][name] = uniform(wanted["uniform"][name], seen)
    for name, asked in sorted(wanted["shared"].items()):
        by_distance: dict[int, list[int]] = {}
        for limit, distance in asked:
            by_distance.setdefault(distance, []).append(limit)
        made["shared"][name] = {}
        for distance, limits in by_distance.items():
            made["shared"][name] |= shared(Field(published, name), limits, distance, folder)
    return made


def in_words(made: dict[str, Any]) -> Iterator[str]:
    """The content of a statistics file as sentences."""
    for name, facts in made["fields"].items():
        yield f"{name}: {facts['rows']:,} rows have a value, {facts['least']:g} to {facts['greatest']:g}"
        for share, top in made["top"].get(name, {}).items():
            ties = "" if top["at"] == 1 else f"; the edge keeps or drops {top['at']:,} rows together"
            yield f"{name}: best {float(share):.2%} from {top['edge']:g} on: {top['above'] + top['at']:,} rows{ties}"
        for kind in ("bins", "uniform"):
            for bins, edges in made[kind].get(name, {}).items():
                empty = "" if len(set(edges)) == len(edges) else "; some of them are equal: bins between stay empty"
                yield f"{name}: {bins} {kind} at {', '.join(f'{edge:g}' for edge in edges)}{empty}"
    for name, found in made["shared"].items():
        for limit, entry in found.items():
            rows, _, distance = limit.partition(":")
            near = f", or one within {distance} bits of it," if distance else ""
            yield f"{name}: {entry['rows']:,} rows have a value{near} of more than {rows} rows"


_EXAMPLES = {"top": "0.3", "bins": "8", "uniform": "8", "shared": "10, or of hashes 1:4,"}


def _requests(args: argparse.Namespace) -> Requests:
    found: Requests = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for given in getattr(args, kind):
            name, _, number = given.rpartition("=")
            value = _parse_number(kind, number)
            if not name or value is None:
                raise UserError(
                    f"select: --{kind} {given}: write FIELD and a number, e.g. --{kind} clip_alt={_EXAMPLES[kind]}"
                )
            found[kind].setdefault(name, []).append(value)
    if not any(found.values()):
        raise UserError(f"select: nothing is asked for. Write {', '.join(f'--{kind}' for kind in KINDS)}: see --help.")
    return found


def _parse_number(kind: str, number: str) -> float | tuple[int, int] | None:
    """A flag's number: a share, a number of bins, or (number of rows, distance). None where it is not valid."""
    try:
        if kind == "top":
            return share if 0 < (share := float(number)) <= 1 else None
        if kind != "shared":
            return bins if (bins := int(number)) >= 2 else None
        rows, _, distance = number.partition(":")
        limit, apart = int(rows), int(distance or 0)
    except ValueError:
        return None
    return (limit, apart) if limit >= 1 and 0 <= apart <= FARTHEST else None


@command
def main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="python -m recap.select.statistics", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", help="the run directory of a scoring job")
    for kind in KINDS:
        number = "SHARE" if kind == "top" else "NUMBER"
        parser.add_argument(f"--{kind}", action="append", default=[], metavar=f"FIELD={number}", help="see above")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--partial", action="store_true", help="of a run that is not complete")
    args = parser.parse_args(arguments)
    wanted, published = _requests(args), Published(args.run)
    if (missing := published.missing()) and not args.partial:
        what = f"{len(missing):,} of {len(published.shards):,} shards are not finished (first: {missing[0]})"
        warn.print(f"[red]select: {escape(what)}. Finish the run, or say --partial.[/]")
        return Exit.INCOMPLETE
    out = args.out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    made = statistics(published, wanted, out.parent)
    atomic.replace(out, json.dumps(made, indent=1, sort_keys=True, allow_nan=False).encode())
    for line in in_words(made):
        console.print(line, markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
