"""Where conversations about images come from, as a config says."""

from __future__ import annotations

from dataclasses import dataclass

from hpc.base.fields import execution, semantic
from recap.engine.settings import PAPER_PROMPT


@dataclass
class Source:
    """Where conversations about images come from. Several sources are concatenated, then shuffled."""

    kind: str = semantic(
        "llava", "llava | sharegpt | messages (JSON or JSON lines) | columns (tars, with captions) | world"
    )
    path: str = semantic("", "the JSON file; columns: tars (glob, braces); world: dotted path of sample(seed, index)")
    images: str = semantic("", "of JSON: folder, zip or tar (glob) that holds the images")
    column: str = semantic("", "columns: a run directory of this toolkit, or a folder of <shard>.parquet files; "
                                "empty: the captions are in the tars")  # fmt: skip
    member: str = semantic("txt", "columns: extension of the tars' member that holds the caption, without `column`")
    field: str = semantic("caption", "columns: name of the text in the column, or in a json member")
    keep: str | None = execution(
        None, "columns: run of a selection (recap.select): samples that are ok there, no others"
    )
    prompts: list[str] = semantic([PAPER_PROMPT], "columns, world: questions; one is drawn for each sample")
    samples: int = semantic(0, "Use the first so many (world: there is no end, so it must be given); 0: all")
    repeat: int = semantic(1, "How often each sample comes in an epoch")
