"""Where conversations about images come from, as a config says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recap.engine.settings import PAPER_PROMPT


def _semantic(default: Any, text: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def _execution(default: Any, text: str) -> Any:
    metadata = {"help": text, "execution": True}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Source:
    """Where conversations about images come from; several are joined one after another, then shuffled."""

    kind: str = _semantic(
        "llava", "llava | sharegpt | messages (JSON or JSON lines) | columns (tars, with captions) | world"
    )
    path: str = _semantic("", "the JSON file; columns: tars (glob, braces); world: dotted path of sample(seed, index)")
    images: str = _semantic("", "of JSON: folder, zip or tar (glob) that holds the images")
    column: str = _semantic("", "columns: a run directory of this toolkit, or a folder of <shard>.parquet files; "
                                "empty: the captions are in the tars")  # fmt: skip
    member: str = _semantic("txt", "columns: extension of the tars' member that holds the caption, without `column`")
    field: str = _semantic("caption", "columns: name of the text in the column, or in a json member")
    prompts: list[str] = _semantic([PAPER_PROMPT], "columns, world: questions; one is drawn for each sample")
    samples: int = _semantic(0, "Use the first so many (world: there is no end, so it must be given); 0: all")
    repeat: int = _semantic(1, "How often each sample comes in an epoch")
