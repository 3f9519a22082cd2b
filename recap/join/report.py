"""Report of a join: every sample of ours and every row of theirs, counted once.

    python -m recap.join.report runs/joined              (--json)

Exit codes: 0 told, 1 the run is not complete, 64 wrong usage.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc

from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.join.operator import AMBIGUOUS, MISSING, JoinOperator
from recap.join.sorted_texts import NO_IDENTIFIER, NO_TEXT, totals

_KINDS = {MISSING: "missing", AMBIGUOUS: "ambiguous"}


def account(source: Published, operator: JoinOperator) -> dict[str, Any]:
    """The counts of a join, as `--json` prints them.

    `samples` is the sum of matched, missing, ambiguous and others (by reason); `theirs`, their rows, that of used,
    theirs_ambiguous, unused, without_text and without_identifier.
    """
    total, kinds = totals(operator.folder)
    reached = np.zeros(total, np.uint8)  # for each identifier's first row, bits: 1 its text is used, 2 it is ambiguous
    counts, by, size = Counter[str](), Counter[str](), np.zeros(total, np.int32)
    for shard in source:
        table = shard.table(["status", "reason", "by", "theirs", "theirs_rows"])
        for found in table.group_by(["status", "reason", "by"]).aggregate([([], "count_all")]).to_pylist():
            kind = "matched" if found["status"] == OK else _KINDS.get(found["reason"], found["reason"])
            counts[kind] += found["count_all"]
            by.update({found["by"]: found["count_all"]} if kind == "matched" else {})
        reaching = table.filter(pc.is_valid(table["theirs"]))
        rows, matched = reaching["theirs"].to_numpy(), pc.equal(reaching["status"], OK).to_numpy()
        reached[rows[matched]] |= 1
        reached[rows[~matched]] |= 2
        size[rows] = reaching["theirs_rows"].to_numpy()
    used, doubtful = (int(size[found].sum()) for found in (reached & 1 > 0, reached == 2))
    left = total - used - doubtful - kinds[NO_TEXT] - kinds[NO_IDENTIFIER]
    others = {reason: n for reason, n in counts.items() if reason not in ("matched", *_KINDS.values())}
    return {
        "samples": counts.total(),
        **{kind: counts[kind] for kind in ("matched", "missing", "ambiguous")},
        "others": others,
        "by": dict(by.most_common()),
        "theirs": total,
        "used": used,
        "theirs_ambiguous": doubtful,
        "unused": left,
        "without_text": kinds[NO_TEXT],
        "without_identifier": kinds[NO_IDENTIFIER],
    }


def _in_words(facts: dict[str, Any]) -> list[str]:
    by = " · ".join(f"{name} {count:,}" for name, count in facts["by"].items())
    lines = [
        f"samples    {facts['samples']:>14,}",
        f"matched    {facts['matched']:>14,}{f'   {by}' if by else ''}",
        f"missing    {facts['missing']:>14,}",
        f"ambiguous  {facts['ambiguous']:>14,}",
        *(f"others     {count:>14,}   {reason}" for reason, count in facts["others"].items()),
        f"theirs     {facts['theirs']:>14,}",
        f"used       {facts['used']:>14,}",
        f"ambiguous  {facts['theirs_ambiguous']:>14,}",
        f"unused     {facts['unused']:>14,}",
    ]
    for key, said in (("without_text", "without a text"), ("without_identifier", "without an identifier")):
        lines += [f"{'':<10} {facts[key]:>14,}   {said}"] if facts[key] else []
    return lines


@command
def main(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m recap.join.report", description=__doc__)
    parser.add_argument("run", help="the run directory of a joining job")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(arguments)
    source = Published(args.run)
    operator = source.submission.checked().operator()
    if not isinstance(operator, JoinOperator):
        raise UserError(f"join: {source.run.path} is no joining job.")
    facts = account(source, operator)
    missing = len(source.missing())
    if args.json:
        console.print_json(json.dumps({**facts, "shards_left": missing}))
    else:
        console.print("\n".join(_in_words(facts)), markup=False)
        if missing:
            console.print(f"{missing:,} shards are not finished: their samples are not counted", markup=False)
    return Exit.INCOMPLETE if missing else Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
