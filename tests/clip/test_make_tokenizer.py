"""A tokenizer of one's own texts, by one command, that a training of either architecture takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from recap.clip.make_tokenizer import main
from recap.clip.settings import ClipConfig, ClipModelConfig
from recap.clip.tokenizer_files import check_tokenizer
from recap.clip.tokens import Tokens
from tests.clip.world import write_world


@pytest.mark.parametrize("architecture", ["recap", "hf"])
def test_a_tokenizer_of_ones_own_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str) -> None:
    write_world(tmp_path, shards=1, samples=40)
    out = tmp_path / "tokenizer"
    given = ["--shards", str(tmp_path / "tars"), "--architecture", architecture, "--vocabulary", "400"]
    assert main([str(out), *given, "--token", "[ALT]"]) == 0
    said = capsys.readouterr().out
    assert f"model.tokenizer={out} model.architecture={architecture}" in said
    config = ClipModelConfig(architecture=architecture, tokenizer=str(out), vocabulary=400, context=12)
    check_tokenizer(ClipConfig(model=config))
    tokens = Tokens(config)
    ids = tokens.ids(["a Red cross"])[0]
    assert len(ids) == 3 and tokens.tokenizer.decode(ids).split() == ["a", "red", "cross"]
    assert tokens.eos != 2 and tokens.shape([ids], ["[ALT]"])[0][1] == tokens.tokenizer.convert_tokens_to_ids("[ALT]")
    assert tokens.ids(["zebra ✓"])[0]  # words that were not seen


def test_what_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, why in (
        ([], "write --texts FILE, or --shards"),
        (["--texts", str(tmp_path / "none.txt")], "none.txt cannot be read"),
        (["--texts", str(tmp_path / "empty.txt")], "there is no text"),
        (["--texts", str(tmp_path / "empty.txt"), "--vocabulary", "20"], "write at least 300"),
    ):
        assert main([str(tmp_path / "out"), *arguments]) == 64
        assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
