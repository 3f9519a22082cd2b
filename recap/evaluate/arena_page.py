"""Renders an arena as one self-contained HTML page: no script, nothing that is loaded, every text escaped."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from hpc.base import page
from hpc.base.page import escaped
from recap.evaluate import suite
from recap.evaluate.arena_data import Arena, Captioner, Line, Statement
from recap.evaluate.intervals import Mean

_MOST_TEXT = 4000  # characters of a caption on the page
_STYLE = """
a { color: light-dark(#1d5a96, #8ec1ef); } nav a { margin-right: 1.2rem; } th { font-weight: 600; }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 3px solid var(--a); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: .3rem; }
.wide { overflow-x: auto; padding: 2px; } .wide td, .wide th { border-top: 1px solid var(--line); white-space: nowrap; }
.wide tr:first-child th { border: 0; } th[scope=row] { font-weight: 400; } small { display: block; color: var(--dim); }
td.n small { font-size: .8rem; } td.best { font-weight: 700; } td.best small { font-weight: 400; }
.shot { margin-bottom: 1rem; } .shot h3 { font-size: 1rem; margin: 0 0 .3rem; } .shot img { height: 14rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .6rem 1.5rem; }
.side h4 { margin: 0; font-size: .9rem; } .side p { margin: .2rem 0; white-space: pre-wrap; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
mark { color: inherit; background: none; text-decoration: underline dotted var(--dim) 2px; }
mark.false { background: light-dark(#ffd9d2, #6b2318); text-decoration: underline wavy light-dark(#b3261e, #ff8a75); }
"""


def whole(arena: Arena, shown: Sequence[str], pictures: Mapping[str, str]) -> str:
    """The page. shown: images, in their order. pictures: data URLs of some of them."""
    names = [captioner.name for captioner in arena.captioners]
    title = f"Arena: {', '.join(names)}"
    parts = [
        '<a class="skip" href="#captions">Skip to the captions</a>',
        f"<h1>{escaped(title)}</h1><div class=dim>{time.strftime('%Y-%m-%d %H:%M')}</div>",
        '<nav aria-label="Parts of this page"><a href="#scores">Scores</a><a href="#wins">Win rates</a>'
        '<a href="#agreement">Agreement of metrics</a><a href="#captions">Captions</a></nav>',
        page.facts(_facts(arena)),
        f'<h2 id="scores">Scores</h2>{_scores(arena, names)}{_failed(arena)}{_accounts(arena)}',
        f'<h2 id="wins">Win rates</h2>{_wins(arena, names)}',
        f'<h2 id="agreement">Agreement of metrics</h2>{_agreement(arena)}',
        f'<h2 id="captions">Captions</h2>{_legend(arena, shown, pictures)}',
        *(_shot(arena, number, shown, pictures) for number in range(len(shown))),
    ]
    return page.whole(title, parts, _STYLE)


def _facts(arena: Arena) -> list[tuple[str, str]]:
    items = [("captioners", f"{len(arena.captioners):,}"), ("images", f"{len(arena.images):,}")]
    for captioner in arena.captioners:
        missing = len(arena.images) - len(captioner.texts)
        said = f"captions of {captioner.name}" + (f", {missing:,} missing" if missing else "")
        items.append((said, f"{len(captioner.texts):,}"))
    false = sum(one.verdict == "no" for by in arena.statements.values() for found in by.values() for one in found)
    if arena.statements:
        items.append(("statements that a judge called false", f"{false:,}"))
    return items


def _table(head: str, rows: str, what: str) -> str:
    """A table that scrolls sideways in its own box, also by keyboard. what: its label."""
    label = escaped(what)
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>{head}{rows}</table></div>'


def _header(names: Sequence[str], first: str = "") -> str:
    return f"<tr><th>{escaped(first)}" + "".join(f'<th scope="col">{escaped(name)}' for name in names) + "</tr>"


def number(value: float) -> str:
    """
    >>> [number(value) for value in (0.5, 12.345, 1234.5, 7)]
    ['0.500', '12.35', '1,234.5', '7']
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3}f}"


def _interval(found: Mean) -> str:
    return f"{number(found.value)}<small>{number(found.low)} to {number(found.high)}, n = {found.n:,}</small>"


# --- scores -----------------------------------------------------------------------------------------


def _scores(arena: Arena, names: Sequence[str]) -> str:
    if not arena.lines:
        return "<div>No metric was measured.</div>"
    said = {1: "higher is better", -1: "lower is better", 0: ""}
    rows = ""
    for line in arena.lines:
        cells = "".join(_score(line, name) for name in names)
        rows += f'<tr><th scope="row">{escaped(line.label)}<small>{said[line.better]}</small>{cells}</tr>'
    note = "<div class=dim>With 95 % bootstrap intervals over images; the best of each line is bold.</div>"
    return note + _table(_header(names), rows, "Scores")


def _score(line: Line, name: str) -> str:
    value = line.values.get(name)
    if name not in line.values or value is None:
        return f"<td class=n>{'–' if name not in line.values else 'undefined'}"
    found = {other: _value(known) for other, known in line.values.items() if known is not None}
    best = line.better and len(found) > 1 and len(set(found.values())) > 1
    is_best = best and found[name] == (max if line.better > 0 else min)(found.values())
    text = _interval(value) if isinstance(value, Mean) else number(value)
    return f'<td class="n{" best" if is_best else ""}">{text}'


def _value(value: Any) -> float:
    return float(value.value if isinstance(value, Mean) else value)


def _failed(arena: Arena) -> str:
    if not arena.failed:
        return ""
    rows = "".join(f"<tr><td>{escaped(m)}<td>{escaped(of)}<td>{escaped(why)}</tr>" for of, m, why in arena.failed)
    return f"<h3>Not measured</h3><table><tr><th>metric<th>captioner<th>why</tr>{rows}</table>"


def _accounts(arena: Arena) -> str:
    """The counts behind each number: how much was judged, refused, unparsed."""
    if not arena.accounts:
        return ""
    rows = "".join(
        f"<tr><td>{escaped(metric)}<td>{escaped(of)}<td>{escaped(line)}</tr>"
        for of, metric, account in arena.accounts
        for line in suite.lines({"metrics": {}, "account": account})
    )
    return f"<details><summary>What these numbers are made of</summary><table>{rows}</table></details>"


# --- battles ----------------------------------------------------------------------------------------


def _wins(arena: Arena, names: Sequence[str]) -> str:
    rates = arena.rates
    if rates is None:
        return "<div>No battle between these captioners was judged.</div>"
    note = (
        f"Judged battles about {rates.images:,} images; a tie is half a win for each. Elo's ratings are of Bradley and "
        "Terry's model: their mean is 1000, 400 points are odds of ten to one. 95 % bootstrap intervals over images."
    )
    elo = "<div>Not all of these captioners are linked by battles: they have no common scale.</div>"
    if rates.elo:
        order = sorted(rates.elo, key=lambda name: -rates.elo[name].value)
        rows = "".join(f"<tr><td>{escaped(name)}<td class=n>{_interval(rates.elo[name])}</tr>" for name in order)
        elo = f"<table><tr><th>captioner<th>rating</tr>{rows}</table>"
    cells = {}
    for pair in rates.pairs:
        held = f"<small>{pair.wins:,} won, {pair.losses:,} lost, {pair.ties:,} ties</small>"
        cells[pair.one, pair.other] = _interval(pair.rate) + held
        turned = Mean(1 - pair.rate.value, 1 - pair.rate.high, 1 - pair.rate.low, pair.rate.n)
        held = f"<small>{pair.losses:,} won, {pair.wins:,} lost, {pair.ties:,} ties</small>"
        cells[pair.other, pair.one] = _interval(turned) + held
    rows = ""
    for name in names:
        each = "".join(f"<td class=n>{cells.get((name, other), '–' if name != other else '')}" for other in names)
        rows += f'<tr><th scope="row">{escaped(name)}{each}</tr>'
    table = _table(_header(names, "wins against"), rows, "Win rates")
    return f'<div class=dim>{escaped(note)}</div><div class="two"><div>{elo}</div><div>{table}</div></div>'


# --- agreement --------------------------------------------------------------------------------------


def _agreement(arena: Arena) -> str:
    found = arena.agreement
    if found is None:
        return "<div>It takes two metrics with a value of each caption.</div>"
    note = (
        "Spearman's rank correlation, what is better counted as more, with 95 % bootstrap intervals over "
        f"{found.images:,} images. –: one of both says the same of all."
    )
    parts = [f"<div class=dim>{escaped(note)}</div><h3>Over captions</h3>", _matrix(found.captions, "over captions")]
    if found.captioners:
        parts += ["<h3>Over the captioners' means</h3>", _matrix(found.captioners, "over captioners")]
    return "".join(parts)


def _matrix(found: Mapping[tuple[str, str], Mean | None], what: str) -> str:
    names = list(dict.fromkeys(name for pair in found for name in pair))
    rows = ""
    for name, other in product(names, names):
        known = found.get((name, other)) or found.get((other, name))
        if other == names[0]:
            rows += f'<tr><th scope="row">{escaped(name)}'
        if known is None:
            rows += f"<td class=n>{'' if name == other else '–'}"
            continue
        share, colour = round(45 * abs(known.value)), "a" if known.value > 0 else "b"
        look = f"background:color-mix(in srgb, var(--{colour}) {share}%, transparent)"
        rows += f'<td class=n style="{look}">{known.value:.2f}<small>{known.low:.2f} to {known.high:.2f}</small>'
    return _table(_header(names), rows, f"Agreement {what}")


# --- captions ---------------------------------------------------------------------------------------


def _legend(arena: Arena, shown: Sequence[str], pictures: Mapping[str, str]) -> str:
    said = [
        f"{len(shown):,} of {len(arena.images):,} images, those first about which metrics disagree most: the share of "
        "pairs of metrics that order two captions the other way round; then those whose captions are furthest apart."
    ]
    if len(pictures) < len(shown):
        said.append(
            f"{len(shown) - len(pictures):,} pictures are not shown: not found, not readable, or too many bytes."
        )
    lines = "".join(f"<div class=dim>{escaped(line)}</div>" for line in said)
    if arena.statements:
        lines += '<div>A judge called it <mark class="false">false</mark>, or was <mark>unsure</mark>.</div>'
    return lines


def _shot(arena: Arena, number_: int, shown: Sequence[str], pictures: Mapping[str, str]) -> str:
    image = shown[number_]
    conflict = dict(arena.images)[image]
    title = f"{number_ + 1}. {image}"
    steps = [(at, word) for at, word in ((number_ - 1, "previous"), (number_ + 1, "next")) if 0 <= at < len(shown)]
    links = " ".join(f'<a href="#image-{at + 1}">{word}</a>' for at, word in steps)
    picture = f'<img src="{pictures[image]}" alt="{escaped(image)}">' if image in pictures else ""
    sides = "".join(_side(arena, captioner, image) for captioner in arena.captioners)
    return (
        f'<article class="card shot" id="image-{number_ + 1}"><h3>{escaped(title)}</h3>'
        f'<div class=dim>disagreement {100 * conflict:.0f} % {links}</div>{picture}<div class="side">{sides}</div>'
        f"{_of_image(arena, image)}</article>"
    )


def _side(arena: Arena, captioner: Captioner, image: str) -> str:
    name = f"<h4>{escaped(captioner.name)}</h4>"
    if image not in captioner.texts:
        return f"<section>{name}<p><i>no caption</i></p></section>"
    found = arena.statements.get(captioner.name, {}).get(image, [])
    text, rest = marked(captioner.texts[image], found)
    false = sum(one.verdict == "no" for one in found)
    told = f"<div class=key>{false} of {len(found)} statements false</div>" if found else ""
    others = "".join(f'<li><mark class="false">{escaped(one.text)}</mark>' for one in rest)
    listed = f"<div>Called false, in other words than the caption's:<ul>{others}</ul></div>" if others else ""
    return f'<section>{name}<p dir="auto">{text}</p>{listed}{told}</section>'


def marked(caption: str, statements: Sequence[Statement]) -> tuple[str, list[Statement]]:
    """(the caption as HTML, with what a judge called false or was unsure of marked; false statements that are not part
    of it). Only its first 4,000 characters are shown.
    """
    places: list[tuple[int, int, str]] = []
    rest = []
    for one in statements:
        if one.verdict not in ("no", "unsure"):
            continue
        words = r"\s+".join(map(re.escape, one.text.split()))
        spans = (match.span() for match in re.finditer(words, caption)) if words else iter(())
        free = next((s for s in spans if all(s[1] <= start or s[0] >= end for start, end, _ in places)), None)
        if free is not None:
            places.append((*free, one.verdict))
        elif one.verdict == "no":
            rest.append(one)
    html, at = "", 0
    shown = caption if len(caption) <= _MOST_TEXT else f"{caption[:_MOST_TEXT]} …"
    for start, end, verdict in sorted(place for place in places if place[0] < _MOST_TEXT):
        kind, said = (' class="false"', "false") if verdict == "no" else ("", "unsure")
        inside = f'<span class="hidden">[{said}: </span>{escaped(shown[start:end])}<span class="hidden">]</span>'
        html += f"{escaped(shown[at:start])}<mark{kind}>{inside}</mark>"
        at = end
    return html + escaped(shown[at:]), rest


def _of_image(arena: Arena, image: str) -> str:
    """A table of each metric's values for one image's captions."""
    names = [captioner.name for captioner in arena.captioners]
    rows = ""
    for line in arena.lines:
        cells = [arena.value(line, name, image) for name in names]
        if any(cell is not None for cell in cells):
            told = "".join(f"<td class=n>{'–' if cell is None else number(cell)}" for cell in cells)
            rows += f'<tr><th scope="row">{escaped(line.label)}{told}</tr>'
    if not rows:
        return ""
    table = _table(_header(names), rows, f"Scores of {image}")
    return f"<details><summary>scores</summary>{table}</details>"
