"""The card of an export: README.md, whose head tells `datasets.load_dataset(OUT)` where the files are."""

from __future__ import annotations

import json

from hpc.operator import OK
from hpc.run.published import Published
from recap.exporting.files import Written
from recap.exporting.rows import COLUMNS, VERSION, Selection


def card(source: Published, written: Written, selection: Selection, kind: str) -> str:
    captioner = source.submission.config.get("captioner", {})
    lines = ["---", "configs:", "- config_name: default", f"  data_files: data/*.{kind}", "---", ""]
    lines += [f"# {source.run.name}: {written.rows:,} captions", ""]
    lines.append(f"- schema version {VERSION}, identity `{source.identity}`")
    lines += [f"- written by: {words}" for words in written.by]
    for label, key in (("prompt", "prompt"), ("decoding", "decoding"), ("longest", "max_tokens")):
        if captioner.get(key) is not None:
            lines.append(f"- {label}: {json.dumps(captioner[key], ensure_ascii=False)}")
    if selection.where:
        lines.append(f"- rows that are kept: {json.dumps(selection.where.text, ensure_ascii=False)}")
    lines += written.downloads.lines()
    lines += ["", "| column | type | meaning |", "|---|---|---|"]
    about = {name: words for name, _, words in COLUMNS}
    lines += [f"| {f.name} | {f.type} | {about.get(f.name, 'a field of the run')} |" for f in selection.schema]
    left_out = {r: n for r, n in written.reasons.most_common() if not r.startswith(f"{OK}: ")}
    if left_out:
        lines += ["", "Samples without a caption are left out:", "", "| reason | samples |", "|---|---|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in left_out.items()]
    return "\n".join(lines) + "\n"
