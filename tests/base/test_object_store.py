"""Object stores for input and output, on a real loopback S3 server behind a proxy that hurts its replies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from hpc.base import object_store
from hpc.base.errors import ShardError, UserError
from hpc.operator import Shard
from recap.data import remote
from tests.support.fault_proxy import FaultProxy


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    """An S3 endpoint that fsspec finds through the environment, with an empty bucket."""
    import s3fs
    from moto.server import ThreadedMotoServer  # here and not above: every test process collects this file

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultProxy(server.get_host_and_port(), hang_s=3.0)
    wanted = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    conf = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 1}}}
    s3fs.S3FileSystem.retries = 1  # the toolkit's own retries are under test
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    yield proxy
    fsspec.config.conf.clear()
    fsspec.config.conf.update(conf)
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    proxy.close()
    server.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.base.remote_files.LONGEST_PAUSE_S", 0.05)


def _shard(name: str, size: int) -> tuple[Shard, bytes]:
    data = hashlib.shake_128(name.encode()).digest(size)
    system = fsspec.filesystem("s3")
    system.pipe_file(f"bucket/{name}", data)
    info = system.info(f"bucket/{name}")
    return Shard(name, f"s3://bucket/{name}", size, info["ETag"].strip('"')), data


@pytest.mark.parametrize("fault", ["503", "truncate", "hang"])
def test_reading_survives_faults(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(remote, "RANGE", 100_000)
    shard, data = _shard(f"in-{fault}.tar", 350_000)
    before = proxy.hits[f"GET {fault}"]
    proxy.arm("GET", fault, 2)
    with remote.open_shard(shard) as file:
        assert file.read() == data
    assert proxy.hits[f"GET {fault}"] == before + 2


def test_a_dead_store_fails_the_shard_by_name(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TRIES", 3)
    shard, _ = _shard("dead.tar", 1000)
    proxy.arm("GET", "503", 50)
    with pytest.raises(ShardError, match="object store does not answer"), remote.open_shard(shard) as file:
        file.read()
    proxy._armed.clear()


def test_input_that_changed_or_went_is_said(proxy: FaultProxy) -> None:
    shard, _ = _shard("changed.tar", 1000)
    fsspec.filesystem("s3").pipe_file("bucket/changed.tar", b"x" * 1000)
    with pytest.raises(ShardError, match="changed since the plan"):
        remote.open_shard(shard)
    with pytest.raises(ShardError, match="does not exist"):
        remote.open_shard(Shard("gone", "s3://bucket/gone.tar", 1))


@pytest.mark.parametrize("fault", ["503", "hang", "lost"])
def test_writing_survives_faults(proxy: FaultProxy, tmp_path: Path, fault: str) -> None:
    """A put whose reply is lost has happened: the second finds the key taken, by our own bytes."""
    source = tmp_path / "a.parquet"
    source.write_bytes(fault.encode() * 1000)
    proxy.arm("PUT", fault, 1)
    url = object_store.put(source, f"s3://bucket/out/{fault}.parquet")
    assert url == f"s3://bucket/out/{fault}.parquet"
    assert proxy.hits[f"PUT {fault}"] == 1
    with object_store.fetched(url) as copy:
        assert copy.read_bytes() == source.read_bytes()


def test_a_published_key_is_never_overwritten(proxy: FaultProxy, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    kept = object_store.put(first, "s3://bucket/out/same.parquet")
    other = object_store.put(second, "s3://bucket/out/same.parquet")
    assert other != kept and other.startswith("s3://bucket/out/same.")
    with object_store.fetched(kept) as one, object_store.fetched(other) as two:
        assert (one.read_bytes(), two.read_bytes()) == (b"first", b"second")


@pytest.mark.parametrize(
    "url", ["out/here", "/data/out", "s3:/bucket/x", "nope://bucket/x", "file:///data/out", "s3://"]
)
def test_what_is_no_store_is_said_at_launch(url: str) -> None:
    with pytest.raises(UserError, match=r"config: `output`: .*Expected the URL of an object store"):
        object_store.check(url)


def test_a_slot_tries_the_store_before_it_works(proxy: FaultProxy) -> None:
    object_store.check("s3://bucket/out")
    assert object_store.problem("s3://bucket/out", "run/probe") == ""
    assert not fsspec.filesystem("s3").exists("bucket/out/run/probe")
    assert "s3://no-such-bucket/out cannot be written" in object_store.problem("s3://no-such-bucket/out", "run/probe")
