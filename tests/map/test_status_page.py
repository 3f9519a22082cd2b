"""The page of a run, in a real browser: its numbers are those of --json, and nothing that a run says becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpc.base.errors import Exit
from hpc.map import breaker
from tests.support.browser import Browser
from tests.support.jobs import EchoJob, inline, texts

EVIL = "<script>document.title='owned'</script>\x1b[31m"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoJob]:
    """A run with a failed shard, a damaged one, and samples that failed and were skipped."""
    lines = {"a": [*texts(9), "bad"], "b": ["unreadable"], "c": [*texts(2), "damaged"], "d": [*texts(3), "skip"]}
    made = EchoJob(
        tmp_path_factory.mktemp("page"), lines, map={"attempts": 1, "max_failed": 0.5}, cluster={"price": 3600.0}
    )
    made.submit()
    assert made.work() == Exit.SOME_FAILED, made.log()
    breaker.exclude(made.run, "n0417", EVIL)
    yield made
    made.close()


def test_the_page_is_whole(job: EchoJob, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    said = inline("hpc.status", str(job.run.path), "--html", str(file))
    assert said.returncode == Exit.COMPLETE and str(file) in said.stdout.replace("\n", "")
    text = file.read_text()
    assert not re.findall(r"(?:src|href)=", text) and "http" not in text.replace("http-equiv", "")
    facts = json.loads(inline("hpc.status", str(job.run.path), "--json").stdout)
    samples, effort = facts["samples"], facts["effort"]
    assert "<b>3 of 4</b>shards done" in text and f"<b>{samples['ok']:,}</b>samples ok" in text
    for spent in effort["by_kind"].values():
        assert f"<td>{spent['what']}<td class=n>{spent['hours']:,.2f}" in text
    (node,) = facts["nodes"]
    assert f"<td>{node['node']}<td" in text and f"<td class=n>{node['samples']:,}<" in text
    assert f"<td class=n>{node['samples'] / (3600 * node['hours']):,.2f}<" in text, "its rate over all of its hours"
    assert "<td>failed: line: bad<td class=n>1<td class=key>a / a-00009</tr>" in text, "a reason has its example"
    assert "<td>skipped: line: to skip<td class=n>1<td class=key>d / d-00003</tr>" in text
    assert "<td>shard failed: input: unreadable<td class=n>1<td class=key>b</tr>" in text
    assert "<td>shard damaged: text: ends too early<td class=n>1<td class=key>c" in text


def test_in_a_browser(job: EchoJob, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert inline("hpc.status", str(job.run.path), "--html", str(file)).returncode == Exit.COMPLETE
    browser = Browser(tmp_path)
    dom = browser.dom(file)
    assert "<title>job</title>" in dom and "<script" not in dom, "no script has run"
    assert "excluded: n0417: &lt;script&gt;document.title" in dom and "\x1b" not in dom
    assert dom.count("<svg") == 1 and dom.count("<polyline") == 1 and dom.count("<rect") >= 1
    colours = {colour for _, colour in browser.picture(file, 1600).getcolors(1 << 24) or []}
    assert (0x3B, 0x82, 0xC4) in colours and (0xD9, 0x82, 0x2B) in colours, "bars and the line of progress are drawn"
    assert browser.console == []


@pytest.mark.slow(ci=True)
def test_light_and_dark_without_errors_and_loading_nothing(job: EchoJob, tmp_path: Path) -> None:
    """What a page would load from outside its policy refuses, and the console says so: a page that does shows that the
    other's console is not empty for nothing.
    """
    file, worse = tmp_path / "page.html", tmp_path / "worse.html"
    assert inline("hpc.status", str(job.run.path), "--html", str(file)).returncode == Exit.COMPLETE
    browser = Browser(tmp_path)
    for dark in (False, True):
        picture = browser.picture(file, 1600, dark=dark)
        assert browser.console == []
        shades = np.asarray(picture.convert("L"))
        paper, ink = (shades < 64, shades > 200) if dark else (shades > 192, shades < 64)
        assert paper.mean() > 0.5 and ink.any(), "its text is seen on it"
    worse.write_text(
        file.read_text().replace("</h1>", '</h1><img src="http://127.0.0.1:9/x.png"><script>1</script>', 1)
    )
    browser.picture(worse, 1600)
    assert any("x.png" in line for line in browser.console) and any("script" in line for line in browser.console)


def test_what_has_no_page(job: EchoJob, tmp_path: Path) -> None:
    run = str(job.run.path)
    assert inline("hpc.status", str(tmp_path), "--html", str(tmp_path / "x.html")).returncode == Exit.USAGE
    said = inline("hpc.status", str(job.run.path.parent), "--html", str(tmp_path / "x.html"))
    assert said.returncode == Exit.USAGE and f"Its map runs: {run}" in said.stderr.replace("\n", "")
    said = inline("hpc.status", run, "--html", str(tmp_path / "missing" / "x.html"))
    assert said.returncode == Exit.USAGE and "cannot be written" in said.stderr.replace("\n", " ")


def test_of_a_run_that_has_done_nothing_yet(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(3)})
    job.submit()
    file = tmp_path / "page.html"
    assert inline("hpc.status", str(job.run.path), "--html", str(file)).returncode == Exit.COMPLETE
    assert "nothing finished yet" in file.read_text() and "0 of 1" in file.read_text()
