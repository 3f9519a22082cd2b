"""The arms of an evaluation of generated images: whose images, from which prompts, and whether arms can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc.base.errors import UserError
from recap.evaluate.generated_report import PROMPTS
from recap.evaluate.image_sets import ImageItem, ImageSet


@dataclass(frozen=True)
class Source:
    """The images of one arm, from one kind of prompts. prompts: raw or recap."""

    arm: str
    prompts: str
    images: ImageSet

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.prompts} prompts"


class Prompts:
    """Collects the prompts of all arms, since arms with different prompts cannot be compared."""

    def __init__(self) -> None:
        self._sets: dict[str, dict[str, set[str]]] = {prompts: {} for prompts in PROMPTS}  # kind -> arm -> texts

    def add(self, source: Source, items: Sequence[ImageItem]) -> None:
        """Note the prompts of an arm's images. UserError for an image without a prompt."""
        if bare := next((item for item in items if not item.prompt), None):
            raise UserError(
                f"evaluate: {bare.name} has no prompt. Give tars a member txt, folders a metadata.jsonl "
                '({"file_name": ..., "prompt": ...} a line).'
            )
        self._sets[source.prompts].setdefault(source.arm, set()).update(item.prompt or "" for item in items)

    def check(self, source: Source) -> list[str]:
        """What a reader must know about a source's prompts. UserError where they cannot be what was meant."""
        arms = self._sets[source.prompts]
        mine, (first, others) = arms[source.arm], next(iter(arms.items()))
        if not mine & others:
            raise UserError(
                f"evaluate: no {source.prompts} prompt of {source.arm} is one of {first} (which has "
                f"{min(others)[:60]!r}; here: {min(mine)[:60]!r}). Sample all arms from one prompt list."
            )
        if self._sets["raw"].get(source.arm) == self._sets["recap"].get(source.arm):
            raise UserError(
                f"evaluate: {source.arm} has the same prompts in --raw and --recap. Name images of original captions "
                "in one and of recaptions in the other."
            )
        odd = len(mine ^ others)
        return [f"{odd:,} {source.prompts} prompts are not both {source.arm}'s and {first}'s"] if odd else []
