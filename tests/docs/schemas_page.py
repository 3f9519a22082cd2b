"""docs/schemas.md: what is in the files of a run, read off the code that writes them.

python -m tests.docs.schemas_page > docs/schemas.md
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.map import publish
from hpc.operator import Column
from hpc.run import plan
from hpc.run.column import Content, schema
from hpc.run.directory import Submission
from recap.exporting import rows as exported
from tests.docs.record import place

ROOT = Path(__file__).parents[2]

OF_EVERY_COLUMN = {
    "key": "the sample's key in its shard; rows are in the shard's order",
    "status": "`ok`, `skipped` (the sample's fault), `failed` (the work's), `quarantined` (it killed its engine)",
    "reason": "a short fixed phrase where the status is not ok, or where an ok row was mended",
    "detail": "the particulars",
}
PLAN = {
    "id": "the shard's name in this run: its path below the run's root, `%2F` for slashes",
    "uri": "where it lies",
    "bytes": "its size when it was planned; -1 where that is not known",
    "etag": "the store's, or the time of the file's last change",
    "expected": "samples, where the input says how many; else -1",
}
MARKER = {
    "shard": "its id", "file": "the column file, relative to the run directory, or its URL",
    "rows": "rows of it", "bytes": "bytes of it", "sha256": "of its bytes", "counts": "rows by status",
    "reasons": "rows that are not ok, by reason", "tokens": "that the model wrote, where it says so",
    "damage": "what is wrong with the input's structure, or null",
    "input": "uri, bytes and etag of the shard that was read", "generation": "0, and one more for each rerun",
    "epoch": "how often this generation had been claimed", "seconds": "from the claim to the marker",
    "by": "who: instance, host, process, job, log, submission and digest of its code",
    "made_by": "what wrote the values: model or endpoint, and what a server says of itself",
    "noted": "what the work found out about the input by the way: where the blocks of the samples lie",
}  # fmt: skip
EVENTS = {
    "start": "a life begins", "stop": "it ends: exit code, why, rows, and where its time went",
    "claim": "a shard was claimed", "segment": "a block was finished and saved",
    "measured": "what rows that were made since are like, to be compared with the pilot's",
    "done": "a shard's marker was linked", "failed": "a shard, or a rank, gave up",
    "engine": "an engine died", "ended": "a claim ended without a marker: released, failed, died",
    "end": "a pipeline's stage ended", "launch": "a pipeline's stage launched its job",
}  # fmt: skip
WRITERS = {
    "a slot": "hpc/map/agent.py",
    "a rank of a gang": "hpc/gang/rank.py",
    "a stage of a pipeline": "hpc/pipeline/stage.py",
}
SUBMISSION = {
    "uuid": "its name, in the job's comment and in the name of each instance",
    "plan": "the plan's hash", "identity": "of what is made", "column": "its name",
    "code": "digest of the snapshot under code/ that slots run", "slots": "elements of the array",
    "config": "every key, resolved", "source": "the config that was launched", "job_ids": "of Slurm",
    "error": "what sbatch said where it refused",
}  # fmt: skip
SHOWN = (
    "caption/demo.yaml", "generate/fuse.yaml", "generate/rating.yaml", "score/demo.yaml", "select/clean.yaml",
    "data/index.yaml", "data/join.yaml", "data/latents.yaml", "data/merge.yaml", "data/shrink.yaml",
    "data/text_embeddings.yaml", "dit/sample.yaml",
)  # fmt: skip


def page() -> str:
    """The whole of docs/schemas.md."""
    common = schema(Column("", []), "").names
    lines = ["# Schemas", "", "Made by `python -m tests.docs.schemas_page`. Where the files lie: "]
    lines[-1] += "[run_directory.md](run_directory.md)."
    lines += ["", "## Columns", "", "One parquet file a shard, one row a sample. Every column has"]
    lines += table(("field", "type", ""), ((name, "string", OF_EVERY_COLUMN[name]) for name in common))
    lines += [
        "and between `key` and `status` its own. What a job adds by its config (a parser's fields, a score's name)"
    ]
    lines += ["stands there too:"]
    lines += table(("operator", "fields", "as in"), operators())
    lines += ["## Exports", "", "Parquet of `recap.export`; all may be null."]
    lines += table(("column", "type", ""), ((name, kind, about) for name, kind, about in exported.COLUMNS))
    lines += ["## The plan", "", "`plan/<hash>.parquet`, a row a shard."]
    kinds = {field.name: field.type for field in plan._schema()}
    lines += table(("field", "type", ""), ((name, kinds[name], PLAN[name]) for name in kinds))
    lines += ["## Markers", "", "`ledger/<identity>/<bucket>/<id>.g<G>.done`, a JSON object."]
    lines += table(("key", ""), ((name, MARKER[name]) for name in marker()))
    lines += ["## Submissions", "", "`submissions/<uuid>.json`, written before sbatch is called."]
    lines += table(("key", "type", ""), submission())
    lines += [
        "## Journals",
        "",
        "`journal/<instance>.jsonl`: a JSON object a line, each with `t` (seconds since 1970, by",
    ]
    lines += ["the writer's clock) and `event`. An ellipsis stands for facts that depend on the case."]
    lines += table(("event", "of", "keys", ""), events())
    return "\n".join(lines).rstrip() + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    names = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return ["", *names, *(f"| {' | '.join([f'`{row[0]}`', *map(str, row[1:])])} |" for row in rows), ""]


def operators() -> Iterator[tuple[str, str, str]]:
    """(operator, its fields, the config that has it so), where there are no runs."""
    with place() as work, contextlib.chdir(work):
        for name in SHOWN:
            made = configs.load(ROOT / "configs" / name, []).operator()
            try:
                own = ", ".join(f"{field} {kind}" for field, kind in made.column().fields)
            except UserError:  # there is no run here whose fields it would take over
                own = "those of the columns that it reads"
            yield f"{type(made).__module__}.{type(made).__name__}", own, f"`configs/{name}`"


def marker() -> list[str]:
    """Keys of the dictionary that is called `marker` where shards are published."""
    for node in ast.walk(ast.parse(inspect.getsource(publish))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "marker":
            assert isinstance(node.value, ast.Dict)
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.value.keys]
            content = [field.name for field in fields(Content)]
            return [name for key in keys for name in ([str(key)] if key else content)]
    raise AssertionError("no marker")


def submission() -> Iterator[tuple[str, str, str]]:
    """(key, type, the comment behind it)."""
    comments = dict(re.findall(r"^    (\w+):[^\n#]*#\s*([^\n]+)$", inspect.getsource(Submission), re.MULTILINE))
    for field in fields(Submission):
        yield field.name, f"`{field.type}`", (SUBMISSION.get(field.name) or comments[field.name]).replace("|", "or")


def events() -> Iterator[tuple[str, str, str, str]]:
    """(event, who writes it, its keys, what it says), of each call that notes one."""
    for who, file in WRITERS.items():
        seen: dict[str, dict[str, None]] = {}
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            first = node.args[0]
            if node.func.attr in ("_note", "note", "event", "write") and isinstance(first, ast.Constant):
                seen.setdefault(str(first.value), {}).update({word.arg or "…": None for word in node.keywords})
        for event, keys in seen.items():
            ordered = sorted(keys, key=lambda key: key == "…")
            yield event, who, ", ".join(f"`{key}`" if key != "…" else key for key in ordered), EVENTS[event]


if __name__ == "__main__":
    sys.stdout.write(page())
