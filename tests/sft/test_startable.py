"""What can be known at launch is said at launch: each check, with the smallest thing that it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc.errors import UserError
from tests.sft.conftest import tree


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file; None takes one out."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return spoil


def renamed(token: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text().replace(json.dumps(token), json.dumps(token + "?"))
    )


def nothing(folder: Path) -> None: ...


CHECKS: list[tuple[str, Callable[[Path], None], dict[str, Any], str]] = [
    ("another model type", changed("config.json", model_type="qwen2_vl"), {}, "model type 'qwen2_vl' cannot be fine"),
    ("no fast tokenizer", lambda f: (f / "tokenizer.json").unlink(), {}, "no tokenizer"),
    ("a tokenizer that is no JSON", lambda f: (f / "tokenizer.json").write_text("{"), {}, "cannot be read"),
    ("no mark for the image", renamed("<image>"), {}, "no token '<image>'"),
    ("no eos", changed("tokenizer_config.json", eos_token=None), {}, "closes answers with the tokenizer's eos_token"),
    ("no end mark", renamed("<|eot_id|>"), {"template": "llama-3"}, "'<|eot_id|>', which is no single token"),
    ("no processor", lambda f: [p.unlink() for p in f.glob("*processor_config.json")], {}, "no image processor"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), {}, "no checkpoint"),
    ("no room for words", nothing, {"max_tokens": 16}, "an image alone takes 16 tokens"),
    ("too long for the model", nothing, {"max_tokens": 5000}, "more than the 4096 positions"),
    ("a kernel misspelt", nothing, {"attention": "flash_attention2"}, "Did you mean flash_attention_2"),
    ("an unknown dtype", nothing, {"dtype": "fp61"}, "`dtype`: 'fp61'"),
    ("no such world", nothing, {"data": [{"kind": "world", "path": "recap.worlds.no.sample", "samples": 3}]}, "module"),
    ("no such maker", nothing, {"model": "", "make": "recap.sft.nothing.demo"}, "no module 'recap.sft.nothing'"),
    ("several workers on tars", nothing, {"data": [{"kind": "columns", "path": "recap/demo/flags/*.tar"}],
                                          "train": {"workers": 2}}, "hold its own window"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "changes", "word"), [c[1:] for c in CHECKS], ids=[c[0] for c in CHECKS])
def test_refused_at_launch(
    captioner: Path, conversations: Path, spoil: Callable[[Path], None], changes: dict[str, Any], word: str
) -> None:
    folder = conversations / "model"
    folder.mkdir()
    for file in captioner.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    configs.check(tree(folder, conversations), "test").trainer().check(1)
    spoil(folder)
    with pytest.raises(UserError, match=word.replace("(", r"\(").replace("|", r"\|")):
        configs.check(tree(folder, conversations, **changes), "test").trainer().check(1)


def test_images_that_are_not_there(captioner: Path, conversations: Path) -> None:
    source = {"kind": "llava", "path": str(conversations / "data.json"), "images": str(conversations / "nowhere*.tar")}
    with pytest.raises(UserError, match="neither a folder nor an archive"):
        configs.check(tree(captioner, conversations, data=[source]), "test").trainer().check(1)


def test_login_nodes_need_no_torch(captioner: Path, conversations: Path) -> None:
    (conversations / "job.json").write_text(json.dumps(tree(captioner, conversations)))
    code = (
        "import json, sys; from hpc import config\n"
        f"config.check(json.load(open({str(conversations / 'job.json')!r})), 'test').trainer().check(2)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
