"""From patterns to shards: local folders, and a real loopback S3 server whose requests are counted."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import UserError
from hpc.operator import MissingShards
from recap.data import expected
from recap.data.addresses import without_credentials
from recap.data.inputs import DataConfig, list_shards, placeholder_digests
from tests.support.fault_proxy import FaultProxy

ROOT = Path(__file__).resolve().parents[2]
CAPTIONER = str(ROOT / "recap" / "demo" / "captioner")


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)


def ids(*patterns: str, **settings: object) -> list[str]:
    return [s.id for s in list_shards(DataConfig(shards=list(patterns), **settings))]  # type: ignore[arg-type]


def test_patterns(tmp_path: Path) -> None:
    make(tmp_path, "a/0.tar", "a/1.tar", "a/2.tar.gz", "a/3.tgz", "a/notes.txt", "b/0.tar", "b/c/9.tar")
    assert ids(f"{tmp_path}/a") == ["0", "1", "2.tar.gz", "3.tgz"]
    assert ids(f"{tmp_path}/a/{{0..1}}.tar") == ["0", "1"]
    assert ids(f"{tmp_path}/a/*.tar") == ["0", "1"]
    assert ids(f"{tmp_path}/*/?.tar") == ["a%2F0", "a%2F1", "b%2F0"]
    assert ids(f"{tmp_path}/{{a,b}}/0.tar", f"{tmp_path}/b/0.tar") == ["a%2F0", "b%2F0"]
    assert ids(f"{tmp_path}/*/*") == ["a%2F0", "a%2F1", "a%2F2.tar.gz", "a%2F3.tgz", "b%2F0"]
    assert ids(f"{tmp_path}/a/0.tar", root=str(tmp_path)) == ["a%2F0"]


def test_list_files_are_relative_to_themselves(tmp_path: Path) -> None:
    make(tmp_path, "a/0.tar", "a/1.tar", "b/7.tar")
    (tmp_path / "list.txt").write_text(f"# mine\na/{{0..1}}.tar\n\n{tmp_path}/b/7.tar\n")
    assert ids(f"@{tmp_path}/list.txt") == ["a%2F0", "a%2F1", "b%2F7"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{x}/a/{{0..5}}.tar", "4 of 6 shards do not exist (first: {x}/a/2.tar)"),
        ("{x}/a/{{0..5.tar", "braces do not match"),
        ("{x}/b", "holds no .tar, .tar.gz, .tgz, .parquet, .arrow or .files itself; its folders may: {x}/b/*/*.tar"),
        ("{x}/nowhere", "{x}/nowhere is no folder, and no .tar"),
        ("{x}/a/z*.tar", "no tar matches"),
        ("{x}/*", "no tar matches. It matches folders; their tars: {x}/*/*.tar."),
        ("@{x}/nolist", "this list cannot be read"),
        ("nosuchscheme://bucket/0.tar", "cannot be listed"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, pattern: str, says: str) -> None:
    make(tmp_path, "a/0.tar", "a/1.tar", "b/c/9.tar")
    with pytest.raises(UserError) as error:
        ids(pattern.format(x=tmp_path))
    assert says.format(x=tmp_path) in str(error.value)


def test_expected_samples_of_img2dataset(tmp_path: Path) -> None:
    make(tmp_path, "0.tar", "1.tar", "2.tar", "3.tar")
    (tmp_path / "0_stats.json").write_text(json.dumps({"count": 10, "successes": 7}))
    (tmp_path / "1_stats.json").write_text('{"count": 10, "succ')  # a crash of img2dataset
    for number in (0, 2):
        status = ["success"] * 5 + ["failed_to_download"] * 2
        pq.write_table(pa.table({"status": status}), tmp_path / f"{number}.parquet")

    def counts(how: str) -> list[int | None]:
        return [s.expected for s in list_shards(DataConfig(shards=[str(tmp_path)], expected=how))]

    assert counts("auto") == [7, None, 5, None]
    assert counts("stats") == [7, None, None, None]
    assert counts("parquet") == [5, None, 5, None]
    assert counts("none") == [None] * 4
    with pytest.raises(UserError, match="is unknown"):
        DataConfig(expected="guess")


@pytest.mark.parametrize(
    "said", ["[" * 200_000, '{"successes": 1e999}', '{"successes": true}', f'{{"successes": {10**30}}}', "[]", "\0\0"]
)
def test_statistics_that_say_nothing(tmp_path: Path, said: str) -> None:
    make(tmp_path, "0.tar")
    (tmp_path / "0_stats.json").write_text(said)
    assert [shard.expected for shard in list_shards(DataConfig(shards=[str(tmp_path)]))] == [None]


def test_a_link_to_itself_is_no_shard(tmp_path: Path) -> None:
    """A tar that is one is named as missing; other files that are leave the folder as it is."""
    make(tmp_path, "0.tar")
    (tmp_path / "0_stats.json").symlink_to("0_stats.json")
    assert [shard.id for shard in list_shards(DataConfig(shards=[str(tmp_path)]))] == ["0"]
    (tmp_path / "1.tar").symlink_to("1.tar")
    with pytest.raises(MissingShards, match=r"1 of 2 shards do not exist \(first: .*/1\.tar\)"):
        list_shards(DataConfig(shards=[str(tmp_path)]))


def test_a_table_beside_a_tar_is_not_read_whole(tmp_path: Path) -> None:
    """It may be a column with gigabytes of text, or img2dataset's with a thousand rows: only its outcomes matter."""
    make(tmp_path, "0.tar", "1.tar")
    blobs = [os.urandom(1000) for _ in range(5000)]
    pq.write_table(pa.table({"status": ["success"] * 5000, "blob": blobs}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"caption": blobs}), tmp_path / "1.parquet")
    before = read_bytes()
    shards = list_shards(DataConfig(shards=[str(tmp_path)]))
    assert [shard.expected for shard in shards] == [5000, None]
    assert read_bytes() - before < 1_000_000


def read_bytes() -> int:
    """What this process asked the system to read so far."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def test_placeholders(tmp_path: Path) -> None:
    one, two = "a" * 64, "b" * 64
    (tmp_path / "list.txt").write_text(f"# dead links\n{two.upper()}\n")
    assert placeholder_digests(DataConfig(placeholders=[one, f"@{tmp_path}/list.txt"])) == {one, two}
    with pytest.raises(UserError, match="is not a sha256"):
        placeholder_digests(DataConfig(placeholders=["abc"]))


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("s3://KEY:SECRET@bucket/{0..9}.tar", "s3://bucket/{0..9}.tar"),
        ("https://user:pw@host:8443/a/0.tar?sig=abc&version=2", "https://host:8443/a/0.tar?version=2"),
        ("https://h/0.tar?X-Amz-Signature=1&X-Amz-Credential=2", "https://h/0.tar"),
        ("sftp://me:pw@host/0.tar", "sftp://me@host/0.tar"),
        ("simplecache::https://token@host/0.tar", "simplecache::https://host/0.tar"),
        ("/data/a@b:c/0.tar", "/data/a@b:c/0.tar"),
        ("s3://bucket/a#b/0.tar", "s3://bucket/a#b/0.tar"),
    ],
)
def test_credentials_are_not_kept(url: str, clean: str) -> None:
    assert without_credentials(url) == clean
    assert DataConfig(shards=[url]).shards == [clean]


def test_http_names_are_taken_as_they_are() -> None:
    """A web server need not list, and asking for every shard would be a request each."""
    shards = list_shards(DataConfig(shards=["https://nowhere.invalid/d/{00..11}.tar?v=1"]))
    assert len(shards) == 12
    assert (shards[3].id, shards[3].uri, shards[3].bytes) == ("03", "https://nowhere.invalid/d/03.tar?v=1", 0)


def test_statistics_that_take_long_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that takes 10 ms a file: the same, sooner than one after another."""
    for number in range(400):
        (tmp_path / f"{number:05d}.tar").touch()
        (tmp_path / f"{number:05d}_stats.json").write_text(json.dumps({"successes": number}))
    near = list_shards(DataConfig(shards=[str(tmp_path)]))
    assert [shard.expected for shard in near] == list(range(400))
    read, slept = expected._successes, []

    def slowly(file: BinaryIO) -> int | None:
        time.sleep(0.01)
        slept.append(file.name)
        return read(file)

    monkeypatch.setattr(expected, "_successes", slowly)
    started = time.perf_counter()
    assert list_shards(DataConfig(shards=[str(tmp_path)])) == near
    assert time.perf_counter() - started < 400 * 0.01 / 1.5 and len(slept) == 400


@pytest.mark.parametrize("count", [13_000, pytest.param(130_000, marks=pytest.mark.slow)])
def test_130_000_shards_are_planned_in_20_s(tmp_path: Path, count: int) -> None:
    """With a statistics file each; by default a tenth of them in a tenth of the time. Hard links make the files."""
    first, stats = tmp_path / "t", tmp_path / "s"
    first.write_bytes(b"x")
    stats.write_text(json.dumps({"successes": 9000}))
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(count):
        if number % 50_000 == 49_999:  # ext4 allows 65,000 links
            first, stats = tmp_path / f"t{number}", tmp_path / f"s{number}"
            first.write_bytes(b"x")
            stats.write_text(json.dumps({"successes": 9000}))
        os.link(first, folder / f"{number:08d}.tar")
        os.link(stats, folder / f"{number:08d}_stats.json")
    taken = []
    for _ in range(1 if count > 100_000 else 3):  # the least: other processes make CPU time longer, too
        started = time.process_time()
        shards = list_shards(DataConfig(shards=[f"{folder}/{{00000000..{count - 1:08d}}}.tar"]))
        taken.append(time.process_time() - started)
    assert len(shards) == count
    assert shards[-1].expected == 9000
    assert min(taken) < 20 * count / 130_000, taken


# --- an object store --------------------------------------------------------------------------


class _Counting(FaultProxy):
    """Counts requests by method and whether they list."""

    requests: Counter[str] = Counter()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests[handler.command + (" list" if "list-type" in handler.path else "")] += 1
        super()._serve(handler)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Counting]:
    import s3fs
    from moto.server import ThreadedMotoServer  # here and not above: every test process collects this file

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = _Counting(server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.makedirs("inputs", exist_ok=True)  # the server keeps its buckets for the whole process
    system.pipe({f"inputs/dc/{i:05d}.tar": b"x" * (i + 1) for i in range(40)})
    system.pipe({f"inputs/dc/{i:05d}_stats.json": b'{"successes": 5}' for i in range(40)})
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.requests.clear()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.close()
    server.stop()


def test_planning_on_an_object_store_is_one_listing(bucket: _Counting) -> None:
    shards = list_shards(DataConfig(shards=["s3://inputs/dc/{00000..00039}.tar"]))
    assert bucket.requests == {"GET list": 1}
    assert [s.bytes for s in shards] == list(range(1, 41))
    assert shards[7].id == "00007"
    assert shards[7].uri == "s3://inputs/dc/00007.tar"
    assert len(shards[7].etag) == 32
    assert shards[7].expected is None


def test_statistics_on_an_object_store_are_read_when_asked_for(bucket: _Counting) -> None:
    shards = list_shards(DataConfig(shards=["s3://inputs/dc"], expected="stats"))
    assert [s.expected for s in shards] == [5] * 40
    assert bucket.requests["GET list"] == 1
    assert bucket.requests["HEAD"] <= 1  # s3fs may look at the bucket


def test_missing_objects(bucket: _Counting) -> None:
    with pytest.raises(MissingShards, match="3 of 43 shards do not exist") as error:
        list_shards(DataConfig(shards=["s3://inputs/dc/{00000..00042}.tar"]))
    assert len(error.value.found) == 40
    assert [s.id for s in error.value.missing] == ["00040", "00041", "00042"]
    assert bucket.requests == {"GET list": 1}


# --- names as people have them ----------------------------------------------------------------


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    make(tmp_path, "a/0.tar", "a/._0.tar", "a/.cache.tar", ".hidden/1.tar")
    assert ids(f"{tmp_path}/a") == ids(f"{tmp_path}/a/*.tar") == ["0"]
    assert ids(f"{tmp_path}/*/*.tar") == ["a%2F0"]
    assert ids(f"{tmp_path}/a/._*.tar") == ["._0"]
    assert ids(f"{tmp_path}/a/._0.tar") == ["._0"]
    assert ids(f"{tmp_path}/.hidden/*.tar") == ["1"]


def test_links_that_lead_nowhere_and_pipes_are_shards_that_do_not_exist(tmp_path: Path) -> None:
    make(tmp_path, "a/0.tar", "a/notes.txt")
    (tmp_path / "a/1.tar").symlink_to(tmp_path / "annex/1.tar")
    (tmp_path / "a/2.txt").symlink_to(tmp_path / "annex/2.txt")
    os.mkfifo(tmp_path / "a/3.tar")
    for pattern in ("a", "a/*.tar", "a/{0,1,3}.tar"):
        with pytest.raises(MissingShards, match="2 of 3 shards do not exist") as error:
            ids(f"{tmp_path}/{pattern}")
        assert [s.id for s in error.value.missing] == ["1", "3"]


def test_names_with_brackets_are_taken_literally_where_they_exist(tmp_path: Path) -> None:
    make(
        tmp_path,
        "set [v2]/0.tar",
        "set [v2]/1.tar",
        "set [v2]/a?b/x[1].tar",
        "v{1}/0.tar",
        "{a,b}/0.tar",
        "set 2/9.tar",
    )
    assert ids(f"{tmp_path}/set [v2]") == ids(f"{tmp_path}/set [v2]/") == ["0", "1"]
    assert ids(f"{tmp_path}/set [v2]/0.tar") == ["0"]
    assert ids(f"{tmp_path}/set [v2]/{{0..1}}.tar") == ids(f"{tmp_path}/set [v2]/*.tar") == ["0", "1"]
    assert ids(f"{tmp_path}/set [v2]/a?b") == ids(f"{tmp_path}/set [v2]/a?b/x[1].tar") == ["x%5B1%5D"]
    assert ids(f"{tmp_path}/v{{1}}/0.tar") == ids(f"{tmp_path}/v{{1}}") == ids(f"{tmp_path}/{{a,b}}/0.tar") == ["0"]
    assert ids(f"{tmp_path}/set [0-9]/*.tar") == ids(f"{tmp_path}/set [0-9]/9.tar") == ["set%202%2F9"]
    (tmp_path / "set [v2]" / "list.txt").write_text("0.tar\n{0..1}.tar\n")
    assert ids(f"@{tmp_path}/set [v2]/list.txt") == ["0", "1"]
    with pytest.raises(MissingShards, match="1 of 2 shards do not exist"):
        ids(f"{tmp_path}/set [v2]/{{1..2}}.tar")
