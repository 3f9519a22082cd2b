"""The card of an export: what the Hub reads of it, what people read, and that no text of a data set becomes markup."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image

from hpc.base.errors import Exit, UserError
from recap import export
from recap.exporting import card as cards
from recap.exporting.licences import Licence, front_matter, licence
from recap.exporting.statistics import PAIRS, Statistics, quantile
from tests.publishing.conftest import EVIL


def test_the_whole_card(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    stated = ["--caption-licence", "CC-BY-4.0", "--image-license", "other: each image's own"]
    assert export.main([str(run), str(out), *stated, "--where", "re_length > 1"]) == Exit.COMPLETE
    text = (out / "README.md").read_text()
    head = DatasetCard(text).data.to_dict()
    assert head["license"] == "cc-by-4.0" and head["pretty_name"] == "shown" and head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == "data/*.parquet"
    for said in (
        "# shown: 32 captions", "- captions: cc-by-4.0\n- images: each image's own", "2 tars, ",
        "- written by: instant",
        '- prompt: "Say \\| what you see"', '- decoding: "sample"', "- temperature: 0.5", "- max_tokens: 128",
        "| ok | 32 |", "| skipped: image: missing | 2 |", "| words of the caption | 32 | 5.0 | 5 | 5 | 5 | 5 |",
        "| tokens | 32 | 6.0 |", '- rows that are kept: "re_length > 1"', "- its files: not at hand",
        f"- this export: `python -m recap.export {run} {out} --caption-licence CC-BY-4.0 --image-license",
    ):  # fmt: skip
        assert said in text, said
    assert "- server: " not in text  # a server's settings, where the job started none
    hours, cost = text.partition("- effort: ")[2].partition("\n")[0].split(" engine hours, $")
    assert 0 <= float(hours) < 1 and float(cost) == pytest.approx(3 * float(hours), abs=0.01)
    assert Image.open(out / "lengths.png").size == (960, 400)
    assert f"identity `{out.name and yaml.safe_load((out / 'shards.json').read_text())['identity']}`" in text
    pairs = text.partition(f"## {PAIRS} samples")[2].partition("\n## ")[0].strip().splitlines()[2:]
    assert len(pairs) == PAIRS and all(line.count(" | ") == 2 and "A picture of" in line for line in pairs)
    assert "are not stated" not in capsys.readouterr().err
    again = tmp_path / "again"
    assert export.main([str(run), str(again), *stated, "--where", "re_length > 1"]) == Exit.COMPLETE
    assert (again / "README.md").read_text().replace(str(again), str(out)) == text


def test_a_card_without_licences_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run: Path) -> dict[str, Any]:
        raise UserError("no status here")

    monkeypatch.setattr(export, "status", away)
    assert export.main([str(run), str(tmp_path / "tars"), "--webdataset"]) == Exit.COMPLETE
    assert "--caption-licence and --image-licence state them" in capsys.readouterr().err
    text = (tmp_path / "tars/README.md").read_text()
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert text.count("not stated by who made this export") == 2 and "- effort: unknown" in text
    assert "`recap.txt`, the caption" in text and "## Columns" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cc-by4.0", "Did you mean 'cc-by-4.0'?"),
        ("none of your business", "write --caption-licence 'other: ITS NAME OR ADDRESS'"),
        ("other:", "is no identifier"),
    ],
)
def test_licences_are_never_made_up(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(tmp_path), str(tmp_path / "x"), "--caption-licence", text]) == Exit.USAGE
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_heads_of_what_holds_images() -> None:
    """Tars hold both, and both licences count."""
    captions, own = licence("odc-by", ""), licence("Other: https://x.org/terms", "")
    assert front_matter(captions, own) == {
        "license": ["odc-by", "other"],
        "license_name": "https-x-org-terms",
        "license_link": "https://x.org/terms",
    }
    assert front_matter(captions, captions) == {"license": "odc-by"}
    assert front_matter(captions, None) == {} and own == Licence("", "https://x.org/terms")


def test_no_text_becomes_markup(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = cards._text(EVIL)
    assert "<" not in shown and "\n" not in shown
    assert shown == (
        r"&lt;img src=x onerror=alert(1)> \| \[a\](http\://x) \*\*b\*\* \`c\` \$d\$ https\://evil.example \@all "
        r"# head \| x \|"
    )
    assert cards._text("re_caption _x_ a.b") == r"re_caption \_x\_ a.b"
    assert cards._code("a`b\nc") == "`` a`b c ``"


def test_lengths_are_counted_over_shards() -> None:
    statistics, told = Statistics(), {"org_caption": None, "re_caption": "x", "lint": ["odd"]}
    for shard in ("a", "b"):
        rows = [{"key": str(n), "re_length": 1 + n % 3, **told} for n in range(30)]
        statistics.add(shard, pa.Table.from_pylist(rows))
    assert statistics.counts["re_length"] == Counter({1: 20, 2: 20, 3: 20}) and statistics.lint == {"odd": 60}
    assert quantile(statistics.counts["re_length"], 0.5) == 2 and len(statistics.pairs) == PAIRS
    assert len({(key, at) for at, key, _, _ in statistics.pairs}) == PAIRS  # of both shards, in a fixed order
    assert [at for at, *_ in statistics.pairs] == sorted(at for at, *_ in statistics.pairs)
