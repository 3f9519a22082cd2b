"""Captioners side by side: numbers that are known, a page that holds nothing but text, and input that is not as it
should be. Judges are the oracle, whose jobs are worked off in this process.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc import config as configs
from hpc.base.errors import Exit
from recap.evaluate import arena_page, metric_agreement, win_rates
from recap.evaluate.arena_data import Statement
from recap.evaluate.win_rates import Battle
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from tests.support.browser import Browser
from tests.support.jobs import ROOT, command, inline
from tests.support.published import published

SAMPLES = 10
EVIL = "<script>document.title='owned'</script>\"'&amp;\x1b[31m"
ARABIC = "دائرة حمراء. 赤い円。"


# --- numbers by hand --------------------------------------------------------------------------------


def test_two_captioners_by_hand() -> None:
    """3 wins and 1 tie of 4: a rate of 7/8. With the one more tie the odds are 4 to 1: 400 log10(4) points apart."""
    battles = [Battle(str(n), "a", "b", point) for n, point in enumerate([1, 1, 1, 0])]
    found = win_rates.compute(battles)
    (pair,) = found.pairs
    assert (pair.rate.value, pair.wins, pair.losses, pair.ties, pair.rate.n) == (7 / 8, 3, 0, 1, 4)
    assert found.elo["a"].value - found.elo["b"].value == pytest.approx(400 * math.log10(4), abs=1e-3)
    assert found.elo["a"].value + found.elo["b"].value == pytest.approx(2000)
    turned = win_rates.compute([Battle(b.image, "b", "a", -b.point) for b in battles])
    assert turned.pairs[0].rate.value == 1 / 8 and turned.elo["a"].value == pytest.approx(found.elo["a"].value)


def test_known_strengths_are_found() -> None:
    rng, strong = np.random.default_rng(0), {"a": 800.0, "b": 1000.0, "c": 1200.0}
    battles = []
    for image in range(600):
        for one, other in (("a", "b"), ("b", "c")):  # a and c never meet
            won = rng.random() < 1 / (1 + 10 ** ((strong[other] - strong[one]) / 400))
            battles.append(Battle(str(image), one, other, 1 if won else -1))
    found = win_rates.compute(battles)
    for name, elo in strong.items():
        assert found.elo[name].low - 10 < elo < found.elo[name].high + 10, found.elo
    assert {(pair.one, pair.other) for pair in found.pairs} == {("a", "b"), ("b", "c")}


def test_ties_everywhere_and_islands() -> None:
    ties = win_rates.compute([Battle(str(n), "a", "b", 0) for n in range(5)])
    assert {mean.value for mean in ties.elo.values()} == {1000.0} and ties.pairs[0].rate.low == 0.5
    islands = win_rates.compute([Battle("0", "a", "b", 1), Battle("0", "c", "d", 1)])
    assert not islands.elo and len(islands.pairs) == 2


def values(*metrics: list[list[float]]) -> metric_agreement.Values:
    array = np.array(metrics, dtype=float)
    names = [f"m{n}" for n in range(len(array))]
    captioners = [f"c{n}" for n in range(array.shape[1])]
    return metric_agreement.Values(names, captioners, [str(n) for n in range(array.shape[2])], array)


def test_correlations_by_hand() -> None:
    """Spearman with ties: ranks are (1, 2.5, 2.5, 4) and (1, 3, 2, 4), so that it is 4.5 / sqrt(4.5 * 5). A metric
    without some values is compared over the others; one that says the same of all has no correlation.
    """
    found = metric_agreement.compute(values([[1, 2, 2, 4]], [[1, 3, 2, 4]], [[4, 3, math.nan, 1]], [[7, 7, 7, 7]]))
    first = found.captions["m0", "m1"]
    assert first is not None and first.value == pytest.approx(4.5 / math.sqrt(4.5 * 5)) and first.n == 4
    third = found.captions["m0", "m2"]
    assert third is not None and (third.value, third.n) == pytest.approx((-1.0, 3))
    assert found.captions["m0", "m3"] is None and not found.captioners
    three = metric_agreement.compute(values([[1, 1], [2, 2], [3, 3]], [[5, 7], [4, 4], [1, 1]]))
    means = three.captioners["m0", "m1"]
    assert means is not None and (means.value, means.low, means.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_images_are_ordered_by_what_metrics_disagree_about() -> None:
    """Image 0: both order the captions alike. 1: the other way round. 2: all equal, but worded otherwise."""
    found = values([[1, 1, 1], [2, 2, 1]], [[1, 2, 1], [2, 1, 1]])
    assert metric_agreement.conflict(found.values).tolist() == [0.0, 1.0, 0.0]
    order = metric_agreement.by_disagreement(found, {"0": ["a", "a"], "1": ["a", "a"], "2": ["a b", "c d"]})
    assert [image for image, _ in order] == ["1", "0", "2"]


def test_statements_are_marked_where_they_stand() -> None:
    said = [Statement("A red circle.", "no"), Statement("It is <b>.", "unsure"), Statement("Two dogs", "no")]
    said.append(Statement("It is", "yes"))
    html, rest = arena_page.marked("A red  circle. It is <b>.", said)
    assert re.sub(r'<span class="hidden">[^<]*</span>', "", html) == (
        '<mark class="false">A red  circle.</mark> <mark>It is &lt;b&gt;.</mark>'
    )
    assert rest == [Statement("Two dogs", "no")]
    twice, _ = arena_page.marked("No. No.", [Statement("No.", "no"), Statement("No.", "no")])
    assert twice.count("<mark") == 2
    assert arena_page.marked("a", [Statement("", "no")])[0] == "a"
    long, rest = arena_page.marked("x " * 3000 + "No.", [Statement("No.", "no")])
    assert len(long) < 4100 and long.endswith(" …") and not rest  # it stands in the caption, behind what is shown


# --- an arena with judges ---------------------------------------------------------------------------


def key(number: int) -> str:
    return f"{number:08d}"


def write(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"key": list(texts), "caption": list(texts.values())}), folder / "0.parquet")


def job(folder: Path, name: str, config: str, changes: dict[str, Any]) -> Path:
    """The run of a shipped config, worked off here."""
    tree = configs.yaml_text.parse((ROOT / "configs" / f"{config}.yaml").read_text())
    for place, value in changes.items():
        configs.assign(tree, place, value)
    return published(tree | {"name": name, "runs": str(folder), "cluster": {"kind": "local"}}).path


def column(folder: Path, name: str) -> dict[str, str]:
    return {"folder": str(folder / name), "field": "caption"}


def judged(folder: Path, url: str, name: str, model: str = "verdict") -> tuple[Path, Path]:
    """Runs of a captioner's sentences, and of verdicts on them."""
    columns = {"data.columns": {"caption": column(folder, name)}, "lists": {"statement": "caption"}}
    told = job(folder, f"sentences-{name}", "generate/each", columns | {"data.shards": [f"{folder}/in"]})
    asks = {"data.shards": [f"{folder}/in"], "data.columns.each.run": str(told), "writer.endpoint": url}
    return told, job(folder, f"judged-{name}", "generate/verify", asks | {"writer.served_model": f"oracle/{model}"})


def rated(folder: Path, url: str, name: str, model: str = "rating") -> Path:
    asks = {"data.shards": [f"{folder}/in"], "data.columns": {"caption": column(folder, name)}}
    asks |= {"writer.endpoint": url, "writer.served_model": f"oracle/{model}"}
    return job(folder, f"rating-{name}", "generate/rating", asks)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three captioners: all right; one group of each second picture in a wrong colour, one caption missing and one
    empty; and one that writes what no page may believe.
    """
    folder = tmp_path_factory.mktemp("arena")
    (folder / "in").mkdir()
    shapes.write_shard(folder / "in" / "0.tar", seed=3, first=0, samples=SAMPLES, side=48)
    scenes = [shapes.sample(3, n, side=48).scene for n in range(SAMPLES)]
    right = {key(n): shapes.caption(scene) for n, scene in enumerate(scenes)}
    planted = dict(right)
    for n in range(1, SAMPLES, 2):
        colours = {group.colour for group in scenes[n].groups}
        other = next(colour for colour in ("red", "blue", "green", "pink") if colour not in colours)
        planted[key(n)] = right[key(n)].replace(scenes[n].groups[0].colour, other, 1)
    del planted[key(0)]
    planted[key(2)] = " "
    write(folder / "right", right)
    write(folder / "planted", planted)
    write(folder / "evil", {name: EVIL if n else ARABIC for n, name in enumerate(right)})
    with serving(Truths([folder / "in" / "0.tar"])) as (url, _):
        for name in ("right", "planted"):
            judged(folder, url, name)
            rated(folder, url, name)
        asks = {"ours": column(folder, "right"), "theirs": column(folder, "planted")}
        battle = {"data.shards": [f"{folder}/in"], "data.columns": asks, "writer.endpoint": url}
        job(folder, "battle", "systems/caparena", battle)
        rated(folder, url, "evil", "rating?refused=1")  # a judge that refuses all
    yield folder


def arena(folder: Path, *more: str) -> dict[str, Any]:
    names = [f"{name}={folder / name}" for name in ("right", "planted")]
    parts = []
    for name in ("right", "planted"):
        parts += ["--", name, "rating", f"rating={folder}/rating-{name}", "--", name, "diversity", str(folder / name)]
        parts += ["--", name, "classics", str(folder / name), "--references", str(folder / "right")]
        parts += ["--tokenizer", "plain"]
    verdicts = [f"{name}={folder}/judged-{name}" for name in ("right", "planted")]
    done = inline(
        "recap.evaluate.arena", *names, "--out", str(folder / "page.html"), "--images", str(folder / "in"), "--json",
        "--battles", f"right:planted={folder}/battle", "--verdicts", *verdicts, *more, *parts,
    )  # fmt: skip
    assert done.returncode == Exit.COMPLETE, done.stderr
    return json.loads(done.stdout)


def test_an_arena(world: Path) -> None:
    found = arena(world)
    page = (world / "page.html").read_text()
    assert found["captioners"]["planted"] == {"captions": SAMPLES - 2, "missing": 2, "left_out": 1}
    assert found["false_statements"] == {"right": 0, "planted": SAMPLES // 2}
    (battle,) = found["battles"]
    assert (battle["wins"], battle["losses"], battle["ties"]) == (SAMPLES // 2, 0, SAMPLES // 2 - 2)
    assert found["elo"]["right"]["value"] > found["elo"]["planted"]["value"]
    values = {line["name"]: line["values"] for line in found["metrics"]}
    assert values["CIDEr-D"]["right"]["value"] == pytest.approx(10.0)
    assert values["CIDEr-D"]["planted"]["value"] < 9.0
    assert values["rating"]["right"]["value"] == 5.0 and values["won"]["right"]["value"] > 0.5
    pairs = {tuple(pair["metrics"]): pair["spearman"] for pair in found["agreement"]["captions"]}
    close = pairs["classics: ROUGE-L", "classics: CIDEr-D"]
    assert any("diversity: self-BLEU" in pair for pair in pairs)  # it says something of each caption
    assert close["value"] > 0.9 and close["low"] <= close["value"] <= close["high"]
    assert not found["not_measured"] and not found["agreement"]["captioners"]  # of two captioners there is none
    assert page.count('<mark class="false">') == SAMPLES // 2 + 1  # and the legend's
    assert page.count("<img ") == SAMPLES and page.count("data:image/webp;base64,") == SAMPLES
    assert "no caption" in page and "<script" not in page and not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert found["images"][0]["image"] in page.partition('id="image-1"')[2][:200]


def test_pictures_are_bounded(world: Path) -> None:
    out = world / "few.html"
    asked = [f"a={world}/right", "--out", str(out), "--images", str(world / "in"), "--samples", "3"]
    assert inline("recap.evaluate.arena", *asked, "--picture-mb", "0").returncode == Exit.COMPLETE
    page = out.read_text()
    assert page.count("<article") == 3 and "<img" not in page and "3 pictures are not shown" in page


def test_what_is_missing_is_named(world: Path, tmp_path: Path) -> None:
    """One captioner, no judge that answers, texts of any script: a page all the same."""
    out = str(tmp_path / "page.html")
    done = inline(
        "recap.evaluate.arena", f"evil={world}/evil", "--out", out, "--json", "--verdicts",
        f"evil={world}/judged-nobody", "--", "evil", "rating", f"r={world}/rating-evil",
    )  # fmt: skip
    assert done.returncode == Exit.COMPLETE, done.stderr
    found, page = json.loads(done.stdout), Path(out).read_text()
    why = {line["metric"]: line["why"] for line in found["not_measured"]}
    assert f"n = 0 of {SAMPLES} asked, {SAMPLES} refused ({SAMPLES} server: status 400)" in why["rating"]
    assert "judged-nobody" in why["verdicts"] and "Not measured" in page
    assert ARABIC in page and "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert page.count('dir="auto"') == SAMPLES and "No battle" in page
    write(tmp_path / "empty", {key(0): "", key(1): " "})
    empty = f"empty={tmp_path}/empty"
    done = inline("recap.evaluate.arena", empty, f"right={world}/right", "--out", out, "--json")
    assert done.returncode == Exit.COMPLETE, done.stderr
    assert json.loads(done.stdout)["captioners"]["empty"] == {"captions": 0, "missing": SAMPLES, "left_out": 2}
    done = inline("recap.evaluate.arena", empty, "--out", out)
    assert done.returncode == Exit.COMPLETE and "0" in Path(out).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{w}/right"], "expected NAME=RUN"),
        (["a={w}/right", "a={w}/planted"], "given twice"),
        (["a={w}/nothing"], "no parquet files"),
        (["a:b={w}/right"], "has no ':'"),
        (["a={w}/right", "b={w}/other"], "no image has a caption of two"),
        (["a={w}/right", "--battles", "a:c={w}/battle"], "no captioner is called 'c'"),
        (["a={w}/right", "--battles", "a={w}/battle"], "expected two captioners"),
        (["a={w}/right", "--statements", "a={w}/x"], "belongs to --verdicts"),
        (["a={w}/right", "--", "b", "diversity", "{w}/right"], "no captioner is called 'b'"),
        (["a={w}/right", "--", "a"], "what the suite is asked"),
        (["a={w}/right", "--", "a", "diversity", "{w}/right", "--json"], "before the first --"),
        (["a={w}/right", "--", "a", "diversity", "{w}/right", "--", "a", "diversity", "{w}/right"], "twice"),
        (["a={w}/right", "--out", "{w}/right/0.parquet/x.html"], "cannot be written"),
    ],
)
def test_wrong_usage(world: Path, arguments: list[str], message: str) -> None:
    if not (world / "other").exists():
        write(world / "other", {"elsewhere": "A cat."})
    done = inline("recap.evaluate.arena", *(argument.format(w=world) for argument in arguments))
    assert done.returncode == Exit.USAGE and message in done.stderr.replace("\n", " "), done.stderr


def test_captions_of_other_images_are_refused(tmp_path: Path) -> None:
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        (tmp_path / name).mkdir()
        rows = {"key": ["k"], "caption": ["A cat."], "image_sha256": [digest]}
        pq.write_table(pa.table(rows), tmp_path / name / "0.parquet")
    done = inline("recap.evaluate.arena", f"a={tmp_path}/a", f"b={tmp_path}/b", "--out", str(tmp_path / "p.html"))
    assert done.returncode == Exit.USAGE and "one image in" in done.stderr.replace("\n", " ")


@pytest.mark.slow(ci=True)
def test_in_a_browser(world: Path, tmp_path: Path) -> None:
    """Nothing is loaded, no script has run; light and dark; every link and table is reached by Tab alone."""
    page = tmp_path / "page.html"
    names = [f"{name}={world / name}" for name in ("right", "planted", "evil")]
    verdicts = [f"{name}={world}/judged-{name}" for name in ("right", "planted")]
    done = inline(
        "recap.evaluate.arena", *names, "--out", str(page), "--images", str(world / "in"), "--samples", "4",
        "--battles", f"right:planted={world}/battle", "--verdicts", *verdicts,
        "--", "right", "rating", f"r={world}/rating-right", "--", "planted", "rating", f"r={world}/rating-planted",
    )  # fmt: skip
    assert done.returncode == Exit.COMPLETE, done.stderr
    with Browser(tmp_path).opened(page) as seen:
        assert seen.of("document.title") == "Arena: right, planted, evil"
        assert seen.of("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
        assert (
            seen.of("[...document.images].every(i => i.complete && i.naturalWidth > 0) && document.images.length") == 4
        )
        marks = "document.querySelectorAll('article mark.false').length"
        assert seen.of(marks) > 0
        shades = {}
        for theme in ("light", "dark"):
            seen.theme(theme)
            picture = seen.picture()
            shades[theme] = sum(picture.getpixel((2, 2))) / 3  # type: ignore[arg-type]
            ink = seen.of("getComputedStyle(document.body).color")
            assert ink == ("rgb(26, 26, 26)" if theme == "light" else "rgb(232, 232, 232)"), ink
        assert shades["light"] > 200 > 60 > shades["dark"]
        reached = []
        wanted = seen.of("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
        closed = seen.of("document.querySelectorAll('details:not([open]) [tabindex=\"0\"]').length")
        for _ in range(wanted - closed):
            seen.press("Tab")
            reached.append(seen.of("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert len(set(reached)) == wanted - closed and reached == sorted(reached)
        seen.of("document.querySelector('.skip').focus()")
        seen.press("Enter")
        assert seen.of("location.hash") == "#captions"
        seen.of("document.querySelector('article summary').focus()")
        seen.press("Enter")
        assert seen.of("document.querySelector('article details').open") is True


def shipped(folder: Path, *changes: str, judge: str | None = None) -> dict[str, Any]:
    """The numbers of the shipped pipeline on twelve pictures, at work to its end. judge: where another server is it."""
    (folder / "in").mkdir()
    shapes.write_shard(folder / "in" / "0.tar", seed=3, first=0, samples=12, side=48)
    config = folder / "arena.yaml"
    with serving(Truths([folder / "in" / "0.tar"])) as (url, _):
        text = (ROOT / "configs/pipeline/arena.yaml").read_text().replace("../", f"{ROOT}/configs/")
        text = text.replace("writer.endpoint: http://localhost:8000/v1", f"writer.endpoint: {judge or url}")
        text = text.replace("http://localhost:8000/v1", url)
        config.write_text(text.replace("runs/arena-world/*.tar", f"{folder}/in"))
        done = command("hpc.launch", str(config), f"runs={folder}", *changes, timeout=3000, PYTHONPATH=str(ROOT))
    assert done.returncode == Exit.COMPLETE, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "arena" / "page" / "stdout.txt").read_text())


class Refusing(BaseHTTPRequestHandler):
    """A judge that wants to look at nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(400, "refused")

    def log_message(self, format: str, *arguments: Any) -> None: ...


@pytest.mark.slow  # 18 stages
@pytest.mark.timeout(3000)
def test_the_shipped_pipeline_has_its_page_where_the_judge_refuses_everything(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge = f"http://127.0.0.1:{server.server_address[1]}/v1"
        found = shipped(tmp_path, "for_each.tenth=null", "for_each.forty=null", judge=judge)
        server.shutdown()
    why = {line["metric"]: line["why"] for line in found["not_measured"]}
    assert set(why) == {
        "rating", "claims", "dcscore", "openchair", "vdcscore", "crosscheck", "capture", "verdicts",
    }  # fmt: skip
    assert "n = 0 of 12 asked, 12 refused" in why["rating"] and "what it asks about has no row" in why["openchair"]
    assert {line["metric"] for line in found["metrics"]} == {"classics", "diversity"}
    page = (tmp_path / "arena" / "page" / "arena.html").read_text()
    assert "Not measured" in page and "12 refused" in page and page.count("<article") == 12


@pytest.mark.slow  # 35 stages, most of them jobs with a start of their own: five CPU-minutes
def test_the_shipped_pipeline(tmp_path: Path) -> None:
    """Captions of which 40 % are of other pictures lose to the right ones by every metric that judges."""
    found = shipped(tmp_path, "for_each.tenth=null")
    assert not found["not_measured"] and (tmp_path / "arena" / "page" / "arena.html").stat().st_size > 10_000
    for line in found["metrics"]:
        right, forty = (_value(line["values"][name]) for name in ("right", "forty"))
        if line["better"] != "neither" and line["name"] != "opener":
            assert right > forty if line["better"] == "higher" else right < forty, line
    assert found["false_statements"]["right"] == 0 < found["false_statements"]["forty"]


def _value(found: Any) -> float:
    return found["value"] if isinstance(found, dict) else found
