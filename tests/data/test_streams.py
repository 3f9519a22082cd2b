"""The plan: every sample once an epoch, the same for any number of ranks, found in constant time and little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.base.errors import UserError
from hpc.operator import Shard
from recap.data.blocks import ShardBlocks
from recap.data.index import Index
from recap.data.samples import JoinedDataConfig, check_batch
from recap.data.streams import StreamPlan
from recap.randomness import permute_array


def synthetic(counts: list[int]) -> Index:
    """An index of shards with so many samples each; nothing on disk."""
    found = []
    for shard, count in enumerate(counts):
        sizes = [512] * (count // 512) + [count % 512] * bool(count % 512)
        starts = [i * 512 * 2048 for i in range(len(sizes) + 1)]
        found.append((Shard(f"{shard:05d}", "", 0), ShardBlocks([f"{i}" for i in range(len(sizes))], starts, sizes)))
    return Index.of(found)


def epoch_of(plan: StreamPlan, epoch: int) -> list[tuple[int, int]]:
    """(block, sample) in the order in which all streams give them in one epoch."""
    given_out = []
    for stream in range(plan.streams):
        position = epoch * plan.length
        while position < (epoch + 1) * plan.length:
            window = plan.window(stream, position)
            assert window.start == position and window.epoch == epoch
            samples = [(p.block, p.first + i) for p in window.pieces for i in range(p.count)]
            given_out += [samples[i] for i in window.order()]
            position += window.size
    return given_out


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute_array(np.arange(size), size, key).tolist()) == list(range(size))


@given(
    st.lists(st.integers(0, 1600), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_gives_every_sample_once_but_for_the_remainder(
    counts: list[int], streams: int, window: int, epoch: int
) -> None:
    if sum(counts) < streams:
        return
    given_out = epoch_of(StreamPlan(synthetic(counts), seed=1, streams=streams, window=window), epoch)
    assert len(given_out) == sum(counts) // streams * streams
    assert len(set(given_out)) == len(given_out)


def test_epochs_and_seeds_differ() -> None:
    index = synthetic([700, 1200, 513])
    first = epoch_of(StreamPlan(index, seed=0, streams=4, window=2), 0)
    assert first != epoch_of(StreamPlan(index, seed=0, streams=4, window=2), 1)
    assert first != epoch_of(StreamPlan(index, seed=1, streams=4, window=2), 0)
    assert first == epoch_of(StreamPlan(index, seed=0, streams=4, window=2), 0)


def test_a_window_mixes_shards() -> None:
    plan = StreamPlan(synthetic([1024] * 400), seed=0, streams=4, window=32)
    window = plan.window(0, plan.length // 2)
    shards = [plan.index.shard_of(piece.block) for piece in window.pieces for _ in range(piece.count)]
    neighbours = [shards[i] for i in window.order()[:256]]  # one batch's share of one stream
    assert len(set(neighbours)) >= 16


@pytest.mark.parametrize("streams", [2, 12])
def test_every_batch_of_an_epoch_mixes_shards(streams: int) -> None:
    """Also the first and the last ones, where windows are short."""
    plan = StreamPlan(synthetic([1024] * 60 + [10240] * 6), seed=0, streams=streams, window=32)
    shards = [
        np.array([plan.index.shard_of(block) for block, _ in part])
        for part in np.split(np.array(epoch_of(plan, 0)), streams)
    ]
    share = 240 // streams
    for first in range(0, plan.length - share, share):
        assert len(set(np.concatenate([part[first : first + share] for part in shards]).tolist())) >= 16


def test_the_golden_order_stays() -> None:
    """A change here changes what every unfinished run would read next."""
    plan = StreamPlan(synthetic([700, 1200, 513]), seed=7, streams=3, window=2)
    window = plan.window(1, plan.length + 300)
    assert [(p.block, p.first, p.count) for p in window.pieces] == GOLDEN_PIECES
    assert window.order()[:6].tolist() == GOLDEN_ORDER


GOLDEN_PIECES = [(3, 115, 397), (2, 0, 407)]
GOLDEN_ORDER = [652, 304, 228, 211, 479, 422]


def test_more_streams_than_samples_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.streams.*more than the 10 samples"):
        StreamPlan(synthetic([10]), seed=0, streams=11)


MEASURE = """
import sys, time
import numpy as np
from recap.data.index import Index
from recap.data.streams import StreamPlan
def memory(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) / 1024
before = memory("VmRSS")
index = Index.open(sys.argv[1])
times = []
for share in (0, 0.5, 0.999, 3.1):
    began = time.process_time()
    plan = StreamPlan(index, seed=0, streams=96)
    plan.window(5, int(plan.length * share))
    times.append(time.process_time() - began)
print(plan.index.samples, memory("VmHWM") - before, *times)
"""


@pytest.mark.slow
def test_a_plan_of_1_3_billion_samples_takes_less_than_100_mb(tmp_path) -> None:
    """And a position is found in the same time wherever it is."""
    shards, blocks = 130_000, 20
    counts = np.full((shards, blocks), 512, dtype=np.uint16)
    counts[:, -1] = 272
    write_large_index(tmp_path / "large.index", counts)
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.index")], capture_output=True, text=True, check=True
    ).stdout.split()
    samples, megabytes, *seconds = (float(value) for value in out)
    assert samples == 1_300_000_000
    assert megabytes < 100, f"{megabytes:.0f} MB"
    assert max(seconds) < 3 * min(seconds), seconds


def write_large_index(path, counts: np.ndarray) -> None:
    import pyarrow as pa

    from recap.data import index as module

    shards, blocks = counts.shape
    names = [f"{i:08d}" for i in range(shards)]
    starts = np.tile(np.arange(blocks + 1, dtype=np.uint32) * 40_000, shards)
    keys = np.char.add("0000", np.arange(shards * blocks).astype("U8")).tolist()

    def lists(values: pa.Array, width: int) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.arange(shards + 1) * width, pa.int32()), values)

    table = pa.table(
        {
            "id": names,
            "uri": [f"s3://bucket/datacomp/shards/{n}.tar" for n in names],
            "bytes": pa.array(np.full(shards, 420_000_000), pa.int64()),
            "etag": names,
            "damage": [""] * shards,
            "first": lists(pa.array(keys, pa.string()), blocks),
            "start": lists(pa.array(starts), blocks + 1),
            "count": lists(pa.array(counts.reshape(-1)), blocks),
            "problems": [[]] * shards,
            "links": [[]] * shards,
            "kind": ["tar"] * shards,
            "origin": [[]] * shards,
            "skip": [[]] * shards,
        },
        schema=module._SCHEMA,
    )
    module.Index(table).save(path)


def test_a_config_without_streams_or_windows() -> None:
    for name, data in (("streams", JoinedDataConfig(streams=0)), ("window", JoinedDataConfig(window=0))):
        with pytest.raises(UserError, match=f"`data.{name}`: 0 is less than 1"):
            check_batch(data, 64)
