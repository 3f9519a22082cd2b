"""The report, looked at in a real browser; nothing that a data set says may become markup."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hpc.base.errors import Exit
from recap import report
from recap.worlds.tars import write_tar
from tests.support.browser import Browser

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\x1b[31m"


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "in").mkdir()
    for shard in range(2):
        samples = [(f"k{shard}{i}", {"png": png((20 * i, 99, 30)), "txt": f"text {i}".encode()}) for i in range(6)]
        samples += [(f"dead{shard}{i}", {"png": png((90, 90, 90))}) for i in range(4)]
        samples += [(f"<b>{shard}", {"png": png((1, 2, 3)), "txt": EVIL.encode()}), (f"no{shard}", {"txt": b"x"})]
        with open(folder / "in" / f"{shard}.tar", "wb") as file:
            write_tar(file, samples)
    config = folder / "c.yaml"
    config.write_text(
        f"name: r\nruns: {folder}\noperator: tests.support.instant.InstantOperator\ncaptioner: {{model: instant}}\n"
        f"data: {{shards: [{folder}/in]}}\ncluster: {{kind: local, price: 3}}\nmap: {{lease_s: 3}}\n"
    )
    command = [sys.executable, "-m", "hpc.launch", str(config)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    return folder / "r"


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    assert report.main([str(run), "--samples", "30"]) == Exit.COMPLETE
    return run / "report.html"


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="([^"]{0,10})', text)) == {"data:image"}
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="card"') == 22 + 1  # each captioned sample, and the image that recurs
    assert "8 times" in text
    assert "skipped: image: missing" in text
    assert "cost of a million" in text
    assert "Where the engine hours went" in text and "<td>start-up and model load<td" in text
    assert "\x1b" not in text


def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    colours: set[Any] = {colour for _, colour in browser.picture(page).getcolors(1 << 24) or []}
    for i in range(1, 6):  # every picture is on the page, in its colour (thumbnails are compressed)
        assert any(max(abs(a - b) for a, b in zip(c, (20 * i, 99, 30), strict=True)) < 6 for c in colours), i
    dom = browser.dom(page)
    assert "<title>r · recap</title>" in dom, "no script has run"
    assert "&lt;script&gt;document.title" in dom
    assert dom.count("<img") == 22 + 1


def test_in_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run), "--text", "--samples", "30"]) == Exit.COMPLETE
    said = capsys.readouterr().out
    assert "text 3" in said
    assert "A picture of" in said
    assert "\x1b" not in said


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == Exit.USAGE
    assert "is not a run directory" in capsys.readouterr().err.replace("\n", " ")
