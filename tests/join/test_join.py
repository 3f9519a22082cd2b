"""Texts from elsewhere, matched with one's own samples: every row of both sides is counted once, nothing is guessed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit, UserError
from hpc.operator import Damage, Row
from hpc.run.published import Published
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.rows import RowsConfig
from recap.join import report
from recap.join import sorted_texts as tables
from recap.join.operator import DOWNLOAD, IMAGE, JoinConfig, JoinOperator
from recap.join.theirs import TheirsConfig
from recap.worlds.tars import write_tar

ROOT = Path(__file__).resolve().parents[2]


def image(key: str) -> bytes:
    return f"image {key}".encode()


def digest(key: str) -> str:
    return hashlib.sha256(image(key)).hexdigest()


def tar(folder: Path, shard: str, keys: list[str], beside: bool = True) -> None:
    """Keys, and the parquet of a downloader that had shrunk the images: their digests are others."""
    folder.mkdir(exist_ok=True)
    with open(folder / f"{shard}.tar", "wb") as file:
        write_tar(file, [(key, {"jpg": image(key), "txt": b"alt"}) for key in keys])
    if beside:
        facts = [
            {"key": k, "url": f"http://x/{k}", "uid": f"uid{k}", "sha256": hashlib.sha256(k.encode()).hexdigest()}
            for k in reversed(keys)
        ]
        pq.write_table(pa.Table.from_pylist(facts), folder / f"{shard}.parquet")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Tars a and b of ten samples with a parquet beside them, c of four without; key c0 is in b, too."""
    tar(tmp_path / "in", "a", [f"a{n}" for n in range(10)])
    tar(tmp_path / "in", "b", [*(f"b{n}" for n in range(9)), "c0"])
    tar(tmp_path / "in", "c", [f"c{n}" for n in range(4)], beside=False)
    return tmp_path / "in"


def joined(ours: Path, files: list[Path], **more: Any) -> tuple[dict[str, Row], JoinOperator]:
    """The rows by shard and key, from an operator as an engine runs it."""
    theirs = TheirsConfig(files=[str(file) for file in files], **more)
    config = JoinConfig(data=RowsConfig(shards=[str(ours)]), theirs=theirs, table=str(ours.parent / "tables"))
    operator = JoinOperator(config)
    shards = operator.plan()
    operator.setup("cpu")
    rows: dict[str, Row] = {}
    for shard in shards:
        items = list(operator.read(shard))
        assert not [item for item in items if isinstance(item, Damage)]
        rows |= {f"{row.shard}/{row.key}": row for row in operator.apply(items)}  # type: ignore[arg-type]
    operator.close()
    return rows, operator


def told(row: Row) -> tuple[str, str, str | None]:
    return row.reason or row.status, row.values.get("by", ""), row.values.get("caption")


def test_digests_of_the_image_and_of_the_download(ours: Path, tmp_path: Path) -> None:
    """Mixed case and spaces do not matter; what is no digest is none; a wrong digest is not mended by its url."""
    rows = [
        {"sha256": digest("a0").upper(), "url": "http://x/a5", "re_caption": "zero"},
        {"sha256": f" {hashlib.sha256(b'a1').hexdigest()} ", "url": None, "re_caption": "one"},
        {"sha256": "0" * 64, "url": "http://x/a2", "re_caption": "another image is there now"},
        {"sha256": None, "url": " http://x/a3", "re_caption": "three"},
        {"sha256": "unknown", "url": "http://x/a4", "re_caption": "four"},
        {"sha256": digest("c1"), "url": "http://x/c1", "re_caption": "no parquet is needed"},
        {"sha256": None, "url": "http://x/a6", "re_caption": None},
        {"sha256": None, "url": None, "re_caption": "whose?"},
        {"sha256": digest("a0"), "url": None, "re_caption": "zero"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    in_bytes = pa.table({"sha256": [bytes.fromhex(digest("a7"))], "re_caption": ["seven"], "url": ["http://x/a0"]})
    pq.write_table(in_bytes, tmp_path / "u.parquet")
    found, operator = joined(ours, [tmp_path / "t.parquet", tmp_path / "u.parquet"])
    assert operator.theirs.by == ["sha256", "url"]
    assert told(found["a/a0"]) == ("ok", IMAGE, "zero") and found["a/a0"].values["theirs_rows"] == 2
    assert told(found["a/a1"]) == ("ok", DOWNLOAD, "one")
    assert told(found["a/a7"]) == ("ok", IMAGE, "seven")
    assert told(found["a/a2"]) == told(found["a/a5"]) == ("join: missing", "", None)
    assert told(found["a/a3"]) == ("ok", "url", "three") and told(found["a/a4"]) == ("ok", "url", "four")
    assert told(found["c/c1"]) == ("ok", IMAGE, "no parquet is needed")
    assert found["c/c2"].detail == "url unknown: not in a parquet beside the tar"
    assert found["a/a0"].values["image_sha256"] == digest("a0")
    assert Counter(told(row)[0] for row in found.values()) == {"ok": 6, "join: missing": 18}
    assert tables.totals(operator.folder) == (10, {"sha256": 6, "url": 2, "no text": 1, "no identifier": 1})


def test_nothing_is_guessed(ours: Path, tmp_path: Path) -> None:
    """Two texts of a url, in two files; a key that two of our tars have. Equal texts twice are one."""
    (tmp_path / "one.csv").write_bytes(
        b"\xef\xbb\xbfURL,key,caption\r\n"
        b'http://x/a0,x,"a text, with ""quotes""\nand a second line"\r\n'
        b"http://x/a1,x,first\r\nhttp://x/a2,x,same\r\n,c0,of which?\r\n,c1,by key\r\n,0a,\r\n"
    )
    more = [
        {"URL": "http://x/a1", "key": "x", "caption": "second"},
        {"URL": "http://x/a2", "key": "x", "caption": "same"},
    ]
    pq.write_table(pa.Table.from_pylist(more), tmp_path / "two.parquet")
    files = [tmp_path / "one.csv", tmp_path / "two.parquet"]
    found, _ = joined(ours, files, names={"url": "URL"}, by=["url", "key"])
    assert told(found["a/a0"]) == ("ok", "url", 'a text, with "quotes"\nand a second line')
    assert told(found["a/a1"]) == ("join: ambiguous", "url", None) and found["a/a1"].detail == "2 texts have one url"
    assert found["a/a1"].values["theirs_rows"] == 2
    assert told(found["a/a2"]) == ("ok", "url", "same") and found["a/a2"].values["theirs_rows"] == 2
    assert told(found["b/c0"]) == told(found["c/c0"]) == ("join: ambiguous", "key", None)
    assert told(found["c/c1"]) == ("ok", "key", "by key")
    again, _ = joined(ours, files[::-1], names={"url": "URL"}, by=["url", "key"])
    assert [told(row) for row in again.values()] == [told(row) for row in found.values()]


def test_parts_and_gzipped_tables(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys keep their zeros; texts lie in many parts; what a killed process had begun is begun again."""
    monkeypatch.setattr(tables, "PART", 3)
    tar(tmp_path / "in", "d", [f"{n:04d}" for n in range(50)])
    lines = "".join(f"{n:04d}\ttext {n}\n" for n in range(50))
    theirs = tmp_path / "t.tsv.gz"
    theirs.write_bytes(gzip.compress(f"key\ttext\n{lines}".encode()))
    operator = JoinOperator(JoinConfig(data=RowsConfig(shards=[str(ours)]), theirs=TheirsConfig([str(theirs)])))
    operator.config.table = str(tmp_path / "tables")
    (operator.folder / f".0-{os.uname().nodename}-1").mkdir(parents=True)
    found, _ = joined(ours, [tmp_path / "t.tsv.gz"])
    assert [told(found[f"d/{n:04d}"]) for n in range(50)] == [("ok", "key", f"text {n}") for n in range(50)]
    monkeypatch.setattr(tables, "batches", lambda file: [][0])  # sorted once: never read again
    assert joined(ours, [tmp_path / "t.tsv.gz"])[0] == found


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from recap.join import sorted_texts
from recap.join.sorted_texts import prepare
from recap.join.theirs import Theirs, TheirsConfig
sorted_texts.PART, close, left = 1000, sorted_texts._Writer.close, [int(sys.argv[2])]
def closes(part):
    left[0] -= 1
    if not left[0]:
        part._texts.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    close(part)
sorted_texts._Writer.close = closes
prepare(Theirs(TheirsConfig({files!r})), Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_while_theirs_is_sorted(tmp_path: Path) -> None:
    """In the first file and in the second: sorted again, the bytes are those of a sort that nobody disturbed."""
    monday = [{"url": f"http://x/{n * 7919 % 40_000}", "text": f"text {n}"} for n in range(40_000)]
    for number, rows in enumerate((monday[:20_000], monday[20_000:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet", row_group_size=5000)
    files = [str(tmp_path / f"{number}.parquet") for number in range(2)]
    script = KILLED.format(root=str(ROOT), files=files)

    def sort(folder: str, at: int) -> int:
        command = [sys.executable, "-c", script, str(tmp_path / folder), str(at)]
        return subprocess.run(command, timeout=500, check=False).returncode

    assert sort("one", 0) == 0
    for at in (2, 6):  # each file has four parts
        assert sort("other", at) == -signal.SIGKILL and list((tmp_path / "other").glob(".[01]-*"))
    assert [p.name for p in (tmp_path / "other").iterdir() if p.name == "000000"]  # of which the second was killed
    assert sort("other", 0) == 0

    def content(folder: str) -> dict[str, bytes]:
        return {f.name: f.read_bytes() for n in range(2) for f in (tmp_path / folder / f"{n:06d}").iterdir()}

    assert content("one") == content("other") and len(content("one")) > 6
    assert not list((tmp_path / "other").glob(".[01]-*"))  # what the killed ones had begun


@pytest.mark.slow(ci=True)
def test_a_job_and_its_account(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As typed; its column is read as others are; bytes are equal when it is made anew; no tar is read where a column
    knows the images.
    """
    rows: list[dict[str, Any]] = []
    rows += [{"sha256": digest(k), "url": f"http://x/{k}", "re_caption": f"of {k}"} for k in ("a0", "a1", "b5", "zz")]
    rows += [{"sha256": None, "url": "http://x/a7", "re_caption": t} for t in ("this", "that")]
    rows += [{"sha256": None, "url": "http://x/a8", "re_caption": ""}]
    (tmp_path / "theirs").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "theirs/0.parquet")
    base = [
        sys.executable, "-m", "hpc.launch", str(ROOT / "configs/data/join.yaml"), f"data.shards=[{ours}]",
        f"theirs.files=[{tmp_path}/theirs]", f"runs={tmp_path}/runs",
    ]  # fmt: skip
    made = [f"data.columns.made.run={tmp_path}/runs/one", "data.columns.made.field=image_sha256", "data.rows=made"]
    for name, more in (("one", []), ("two", made)):
        command = [*base, f"name={name}", f"table={tmp_path}/tables-{name}", *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
        assert "1 of 3 tars have no parquet of img2dataset beside them" in done.stderr
        if name == "two":
            assert "no tar read" in done.stdout
        assert report.main([f"{tmp_path}/runs/{name}", "--json"]) == Exit.COMPLETE
        assert json.loads(capsys.readouterr().out) == {
            "samples": 24, "matched": 3, "missing": 20, "ambiguous": 1, "others": {}, "by": {IMAGE: 3},
            "theirs": 7, "used": 3, "theirs_ambiguous": 2, "unused": 1, "without_text": 1, "without_identifier": 0,
            "shards_left": 0,
        }  # fmt: skip
    one, two = ({s.shard.id: s for s in Published(tmp_path / "runs" / name)} for name in ("one", "two"))
    assert all(
        one[shard].table(["caption", "by", "theirs"]) == two[shard].table(["caption", "by", "theirs"]) for shard in one
    )
    command = [*base, "name=again", f"table={tmp_path}/tables-again"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=240)
    again = {s.shard.id: s.file.read_bytes() for s in Published(tmp_path / "runs/again")}
    assert again == {shard: found.file.read_bytes() for shard, found in one.items()}
    column = open_column("theirs", ColumnConfig(run=str(tmp_path / "runs/one")))
    keys = [f"a{n}" for n in range(10)]
    assert column.read(one["a"].shard, 0, keys, []).values == ["of a0", "of a1", *[None] * 8]


@pytest.mark.parametrize(
    ("content", "more", "says"),
    [
        ({"sha256": ["0"], "words": ["x"]}, {}, "has no column 're_caption or caption or text' (theirs.text)"),
        ({"sha256": ["0"], "words": ["x"]}, {"text": "word"}, "no column 'word' (theirs.text). Did you mean 'words'?"),
        ({"id": ["0"], "text": ["x"]}, {}, "has no column for key: it has id, text. Name it: theirs.names.key=COLUMN"),
        (
            {"sha256": ["0"], "text": ["x"]},
            {"by": ["sha"]},
            "'sha' is no identifier. Write some of sha256, uid, url, key",
        ),
        ({"sha256": ["0"], "text": [["x"]]}, {}, "column text is list<element: string>, which is no text"),
        ({"url": ["0"], "text": ["x"]}, {}, "1 of 1 tars have no parquet of img2dataset beside them"),
    ],
)
def test_mistakes_are_told_at_launch(tmp_path: Path, content: dict, more: dict, says: str) -> None:
    tar(tmp_path / "in", "c", ["c0"], beside=False)
    pq.write_table(pa.table(content), tmp_path / "t.parquet")
    theirs = TheirsConfig(files=[str(tmp_path / "t.parquet")], **more)
    with pytest.raises(UserError) as error:
        JoinOperator(JoinConfig(data=RowsConfig(shards=[str(tmp_path / "in")]), theirs=theirs)).plan()
    assert says in str(error.value)


def test_files_that_cannot_be_read(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut")
    nothing, cut = [tmp_path / "no*"], [tmp_path / "cut.parquet"]
    for files, says in (([], "files` is empty"), (nothing, "finds no parquet or csv file"), (cut, "cannot be read")):
        with pytest.raises(UserError, match=says):
            joined(ours, files)


BIG = """
import sys
sys.path.insert(0, {root!r})
from collections import Counter
from recap.data.rows import RowsConfig
from recap.join.operator import JoinConfig, JoinOperator
from recap.join.theirs import TheirsConfig
data, theirs = RowsConfig(shards=[{ours!r}]), TheirsConfig([{theirs!r}])
operator, counts = JoinOperator(JoinConfig(data=data, theirs=theirs, table={table!r})), Counter()
shards = operator.plan()
operator.setup("cpu")
for shard in shards:
    for item in operator.read(shard):
        operator.put(item)
        if not operator.want():
            counts.update(row.reason or row.status for row in operator.poll(0))
    counts.update(row.reason or row.status for row in operator.poll(0))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone
print(dict(counts), peak.split()[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)  # of a busy machine: two minutes of its own
def test_a_million_rows_in_little_memory(tmp_path: Path) -> None:
    """1,000,000 rows of theirs, by url and digest of the download, against 620,000 samples of 62 tars."""
    samples, rows = 620_000, 1_000_000
    for first in range(0, samples, 10_000):
        tar(tmp_path / "in", f"{first:09d}", [f"{n:09d}" for n in range(first, first + 10_000)])
    theirs = {
        "url": [f"http://x/{n:09d}" if n % 2 else None for n in range(rows)],
        "sha256": [None if n % 2 else hashlib.sha256(b"%09d" % n).hexdigest() for n in range(rows)],
        "re_caption": [f"{n} is a number, and a caption of about three hundred letters. " * 5 for n in range(rows)],
    }
    pq.write_table(pa.table(theirs), tmp_path / "t.parquet")
    script = BIG.format(
        root=str(ROOT), ours=str(tmp_path / "in"), theirs=str(tmp_path / "t.parquet"), table=str(tmp_path / "tables")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    counts, _, kilobytes = done.stdout.strip().rpartition(" ")
    assert counts == str({"ok": samples}) and int(kilobytes) < 300_000, done.stdout
