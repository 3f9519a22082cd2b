"""What can be known at launch is said at launch: each check, with the smallest thing that it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.sft.conftest import tree


def test_login_nodes_need_no_torch(captioner: Path, conversations: Path) -> None:
    (conversations / "job.json").write_text(json.dumps(tree(captioner, conversations)))
    code = (
        "import json, sys; from hpc import config\n"
        f"config.check(json.load(open({str(conversations / 'job.json')!r})), 'test').trainer().check(2)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
