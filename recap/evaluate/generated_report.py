"""The scores of generated images as a table in the order of the paper's table 7, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from recap.evaluate.clip_score import ClipScores
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judge import Ratings

PROMPTS = ("raw", "recap")


@dataclass
class Scores:
    """Scores of one set of images: of one arm, one kind of prompts and one guidance value.

    n: images that were measured.
    skipped: samples without a readable image; one whose guidance is not known counts in each set.
    damaged: damaged tars of all sets; their images before the damage are measured.
    cut: prompts that were longer than the drawing model's context; None where that is not known.
    """

    n: int = 0
    skipped: int = 0
    damaged: int = 0
    cut: int | None = None
    distance: float | None = None
    clip: ClipScores | None = None
    long_clip: ClipScores | None = None
    judged: Ratings | None = None


@dataclass
class Report:
    """Everything that was measured.

    distance: the name of the Fréchet distance. about: sentences that say how the scores were made.
    rows: by (arm, guidance), then by kind of prompts, raw or recap.
    left_out: samples without a readable image, by set and reason.
    """

    distance: str = "FID"
    about: list[str] = field(default_factory=list)
    rows: dict[tuple[str, float | None], dict[str, Scores]] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def unanswered(self) -> int:
        """How many images the judge did not answer for."""
        judged = [scores.judged for row in self.rows.values() for scores in row.values()]
        return sum(sum(j.unanswered.values()) for j in judged if j)

    def as_json(self) -> dict[str, Any]:
        rows = [
            {"arm": arm, "guidance": guidance} | {prompts: _scores(found) for prompts, found in row.items()}
            for (arm, guidance), row in self.rows.items()
        ]
        left_out = {name: dict(reasons) for name, reasons in self.left_out.items()}
        return {"distance": self.distance, "about": self.about, "rows": rows, "left_out": left_out}

    def as_markdown(self) -> str:
        """The table, with notes below it."""
        columns = [column for column in self._columns() if any(column[1:])]
        head = ["arm", "guidance", *(column[0] for column in columns)]
        lines = [
            [arm, "" if guidance is None else f"{guidance:g}", *(column[1 + i] or "–" for column in columns)]
            for i, (arm, guidance) in enumerate(self.rows)
        ]
        table = [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]]
        return "\n".join([*table, "", *(f"- {line}" for line in [*self.about, *self._notes()])]) + "\n"

    def _columns(self) -> list[list[str]]:
        """The columns that have a value: name, then a cell for each row, "" where nothing was measured."""
        sets = {prompts: [row.get(prompts, Scores()) for row in self.rows.values()] for prompts in PROMPTS}
        raw, recap = sets["raw"], sets["recap"]
        return [
            ["raw n", *map(_count, raw)],
            [f"raw {self.distance} ↓", *map(_distance, raw)],
            ["raw CLIP ↑", *(_clip(s.clip) for s in raw)],
            ["recap n", *map(_count, recap)],
            [f"recap {self.distance} ↓", *map(_distance, recap)],
            ["recap CLIP ↑", *(_clip(s.clip) for s in recap)],
            ["recap long CLIP ↑", *(_clip(s.long_clip) for s in recap)],
            ["recap judge ↑", *(_judge(s.judged) for s in recap)],
            ["raw long CLIP ↑", *(_clip(s.long_clip) for s in raw)],
            ["raw judge ↑", *(_judge(s.judged) for s in raw)],
        ]

    def _notes(self) -> list[str]:
        notes = []
        sets = [scores for row in self.rows.values() for scores in row.values()]
        if any(s.distance is not None for s in sets) and len({s.n for s in sets}) > 1:
            notes.append(f"the sets differ in size: their {self.distance} do not compare (more images give less)")
        if any(s.clip or s.long_clip or s.judged for s in sets):
            notes.append(
                f"in brackets: 95 % bootstrap interval over images, not over trainings; {self.distance} has none"
            )
        for (arm, guidance), row in self.rows.items():
            for prompts, found in row.items():
                if found.cut:
                    at = "" if guidance is None else f", guidance {guidance:g}"
                    notes.append(f"{arm}{at}: its text encoder cut {found.cut / found.n:.0%} of the {prompts} prompts")
        for name, reasons in self.left_out.items():
            told = ", ".join(f"{count:,} ({reason})" for reason, count in reasons.most_common(3))
            notes.append(f"{name}: skipped: {told}")
        return notes


def _count(scores: Scores) -> str:
    if not scores.n:
        return ""
    parts = [f"{scores.n:,}", *[f"{scores.skipped:,} skipped"] * bool(scores.skipped)]
    parts += [f"{scores.damaged:,} damaged tar{'s' * (scores.damaged != 1)}"] * bool(scores.damaged)
    return ", ".join(parts)


def _distance(scores: Scores) -> str:
    if scores.distance is None:
        return ""
    return f"{scores.distance:.2f}" if scores.distance >= 1 else f"{scores.distance:.4f}"


def _interval(mean: Mean, digits: int) -> str:
    return f"{mean.value:.{digits}f} ({mean.low:.{digits}f}–{mean.high:.{digits}f})"


def _clip(scores: ClipScores | None) -> str:
    return f"{_interval(scores.mean, 2)}, {scores.cut_share:.0%} cut" if scores else ""


def _judge(judged: Ratings | None) -> str:
    if judged is None:
        return ""
    parts = [f"n {len(judged.ratings):,}"]
    parts += [f"{len(judged.unparsed):,} unparsed"] * bool(judged.unparsed)
    parts += [f"{sum(judged.unanswered.values()):,} unanswered"] * bool(judged.unanswered)
    value = _interval(bootstrap_mean(judged.ratings), 2) if judged.ratings else "no rating"
    return ", ".join([value, *parts])


def _scores(scores: Scores) -> dict[str, Any]:
    found: dict[str, Any] = {"n": scores.n, "skipped": scores.skipped, "damaged": scores.damaged}
    if scores.cut is not None:
        found["cut by the model"] = scores.cut / max(scores.n, 1)
    if scores.distance is not None:
        found["distance"] = scores.distance
    for name, clip in (("clip", scores.clip), ("long_clip", scores.long_clip)):
        if clip:
            found[name] = {**clip.mean.plain, "cut": clip.cut_share, "context": clip.clip.context}
    if judged := scores.judged:
        mean = bootstrap_mean(judged.ratings).plain if judged.ratings else {"value": None, "n": 0}
        counts = {str(rating): judged.ratings.count(rating) for rating in range(1, 6)}
        found["judge"] = {
            **mean, "counts": counts, "unparsed": len(judged.unparsed), "unanswered": dict(judged.unanswered),
            "asked": judged.asked, "cached": judged.cached,
        }  # fmt: skip
    return found
