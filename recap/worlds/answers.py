"""The oracle's answers: what a judge, a captioner or a writer would say who makes no mistakes.

A request's parts stand behind labels at the beginning of a line ("Caption: ...", "Statement: ..."), as the shipped
prompts have them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from recap.worlds import shape_claims
from recap.worlds.shape_claims import facts
from recap.worlds.shape_scenes import COUNTS, plural
from recap.worlds.truths import Judged, Truth


def _after(label: str, text: str) -> str | None:
    """What stands behind a label, to the end of its line; None where there is no such line."""
    found = re.search(rf"^(?:{label}):[ \t]*(.*)$", text, re.M)
    return found[1].strip() if found else None


# --- of a picture -----------------------------------------------------------------------------------


def _ask(truth: Truth, text: str) -> str:
    asked = [answer for word, answer in truth.attributes.items() if word in text.lower()]
    return " ".join(asked) or truth.caption


def _rating(truth: Truth, text: str) -> str:
    found = truth.judge(text)
    share = found.right / max(found.right + found.wrong + found.unsaid, 1)
    return f"Rating: {1 + round(4 * share)}"


def _verdict(truth: Truth, text: str) -> str:
    said = _after("Statement", text)
    found = truth.judge(text if said is None else said)
    return "no" if found.wrong else "yes" if found.right else "unsure"


def _compare(truth: Truth, text: str) -> str:
    """The last word is the verdict, as judges are asked for it."""
    merits = [_merit(truth, text, place) for place in ("First", "Second")]
    verdict = "tie" if merits[0] == merits[1] else "first" if merits[0] > merits[1] else "second"
    return f"One has {merits[0]} facts more right than wrong, the other {merits[1]}.\n{verdict}"


def _pick(truth: Truth, text: str) -> str:
    merits = {place: _merit(truth, text, place) for place in ("First", "Second", "Third")}
    best = max(merits, key=lambda place: merits[place])
    said = ", ".join(f"the {place.lower()} {merit}" for place, merit in merits.items())
    return f"Facts more right than wrong: {said}.\n{best.lower()}"


def _merit(truth: Truth, text: str, place: str) -> int:
    """Facts more right than wrong in the caption that stands at a place."""
    found = truth.judge(_after(f"{place} caption", text) or "")
    return found.right - found.wrong


def _fuse(truth: Truth, text: str) -> str:
    name = _after("Sentence 1|Alt-text|Text", text)
    return f"{truth.caption} It is called {name}." if name else truth.caption


def told(text: str) -> Truth | None:
    """What a text for `fuse` says itself of a picture that it does not name: its second sentence is believed."""
    seen = _after("Sentence 2|What can be seen", text)
    return Truth("", seen, lambda text: Judged(0, 0, 0), {}) if seen else None


TASKS: Mapping[str, Callable[[Truth, str], str]] = {
    "caption": lambda truth, text: truth.caption,
    "ask": _ask,
    "rating": _rating,
    "verdict": _verdict,
    "compare": _compare,
    "pick": _pick,
    "fuse": _fuse,
}
"""Tasks that a picture is looked at for, by name."""


# --- of texts alone ---------------------------------------------------------------------------------


def _facts(text: str) -> str:
    return "\n".join(f"[{fact}][yes]" for fact in facts(_after("Caption", text) or "")) or "There are none."


def _match(text: str) -> str:
    """The number of the fact in a numbered list that says the same as "Fact:"; 0 without one."""
    fact = (_after("Fact", text) or "").lower()
    listed = re.findall(r"^(\d+)\. (.*)$", text, re.M)
    return next((number for number, other in listed if other.strip().lower() == fact), "0")


def _supports(text: str) -> str:
    """Whether all that "Statement:" says is said by "Text:"."""
    known = {fact.lower() for fact in facts(_after("Text", text) or "")}
    stated = {fact.lower() for fact in facts(_after("Statement", text) or "")}
    return "unsure" if not stated else "yes" if stated <= known else "no"


def _objects(text: str) -> str:
    """The things that "Caption:" names, a line each."""
    return "\n".join(dict.fromkeys(_named(claim) for claim in shape_claims.parse(_after("Caption", text) or "")))


def _contains(text: str) -> str:
    """OpenCHAIR's question, in its own words, which have no labels."""
    found = re.search(
        r"descriptions of an image: (.*)\nDoes the image contain the following object: (.*)\?", text, re.S
    )
    parts = found.groups() if found else ("", "")
    there, wanted = ({_named(claim) for claim in shape_claims.parse(part)} for part in parts)
    return "unsure" if not wanted else "yes" if wanted <= there else "no"


def _named(claim: shape_claims.Claim) -> str:
    return " ".join(filter(None, (claim.colour, claim.kind)))


_QUESTIONS = {
    "How many {plural} are there?": lambda claim: COUNTS[claim.count] if claim.count else None,
    "How large is the {name}?": lambda claim: claim.size,
    "Where is the {name}?": lambda claim: claim.place,
}


def _asked(text: str) -> dict[str, str]:
    """Questions that a text answers, and its answers."""
    found: dict[str, str] = {}
    for claim in shape_claims.parse(text):
        names = {"name": _named(claim), "plural": " ".join(filter(None, (claim.colour, plural(claim.kind))))}
        found |= {asks.format(**names): answer for asks, of in _QUESTIONS.items() if (answer := of(claim))}
    ground = re.search(r"background is (\w+)", text, re.I)
    return found | ({"What is the background?": ground[1].lower()} if ground else {})


def _questions(text: str) -> str:
    found = _asked(_after("Reference", text) or "")
    return "\n".join(f"[{question}][{answer}]" for question, answer in found.items()) or "There are none."


def _answer(text: str) -> str:
    """What "Caption:" alone answers to "Question:"."""
    return _asked(_after("Caption", text) or "").get(_after("Question", text) or "", "It does not say.")


def _grade(text: str) -> str:
    right, said = (re.findall(r"\w+", (_after(label, text) or "").lower()) for label in ("Right answer", "Answer"))
    same = right == said
    return json.dumps({"verdict": "yes" if same else "no", "score": 5 if same else 0})


def _graph(text: str) -> str:
    """Objects, attributes ("object | attribute") and relations ("object | relation | object") of "Caption:"."""
    caption = _after("Caption", text) or ""
    claims = shape_claims.parse(caption)
    attributes = [f"{claim.kind} | {said}" for claim in claims for said in (claim.colour, claim.size) if said]
    relations = [f"{claim.kind} | in | {claim.place}" for claim in claims if claim.place]
    objects = list(dict.fromkeys(claim.kind for claim in claims))
    if ground := re.search(r"background is (\w+)", caption, re.I):
        objects.append("background")
        attributes.append(f"background | {ground[1].lower()}")
    return json.dumps({"objects": objects, "attributes": attributes, "relations": relations})


OF_TEXTS: Mapping[str, Callable[[str], str]] = {
    "facts": _facts,
    "match": _match,
    "supports": _supports,
    "objects": _objects,
    "contains": _contains,
    "questions": _questions,
    "answer": _answer,
    "grade": _grade,
    "graph": _graph,
}
"""Tasks on texts in the words of `recap.worlds.shapes`, by name. They look at no picture."""


# --- mistakes ---------------------------------------------------------------------------------------

_OPPOSITE = {
    "yes": "no", "no": "yes", "unsure": "yes", "first": "second", "second": "first", "third": "first", "tie": "first",
}  # fmt: skip


def mistaken(task: str, right: str) -> str | None:
    """What is said instead of the right answer; None where the truth of another picture is told."""
    if task == "rating":
        return f"Rating: {6 - int(right[-1])}"
    if task == "grade":
        return json.dumps({"verdict": "no", "score": 0} if '"yes"' in right else {"verdict": "yes", "score": 5})
    if task == "match":
        return "1" if right == "0" else "0"
    if task == "answer":
        return "It does not say."
    if task == "graph":
        return json.dumps({"objects": ["thing"], "attributes": [], "relations": []})
    if task in ("facts", "questions", "objects"):  # the first of several is overlooked
        first, _, rest = right.partition("\n")
        return rest or first
    return _OPPOSITE[right.split()[-1]] if task in ("verdict", "compare", "pick", "supports", "contains") else None
