"""The mirrors of metrics.jsonl, for real: TensorBoard's event file and wandb's offline run hold its numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.ranks import launch, lines, log

TRAIN = {"samples": 120, "batch": 12, "threads": 1, "evaluate_every": 60}
SECRETS = {"WANDB_API_KEY": "a1b2c3d4" * 5, "HF_TOKEN": "hf_never_on_disk"}


def told(directory: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> number of metrics.jsonl, without the clock, which the mirrors have of their own."""
    return {
        (name, line["step"]): float(value)
        for line in lines(directory)
        for name, value in (line | line.get("counts", {})).items()
        if isinstance(value, (int, float)) and name != "t"
    }


def in_tensorboard(directory: Path) -> dict[tuple[str, int], float]:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    (file,) = (directory / "tensorboard").glob("events.out.tfevents.*")
    events = loader.EventAccumulator(str(file)).Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format, blocks of 32 KiB whose pieces have a header of 7 bytes, as the file."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def in_wandb(directory: Path) -> dict[tuple[str, int], float]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                found[name, record.history.step.num] = float(json.loads(item.value_json))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("tracker", "reads"), [("tensorboard", in_tensorboard), ("wandb", in_wandb)])
def test_mirrors_hold_the_numbers_and_no_secrets(tmp_path: Path, tracker: str, reads: Any) -> None:
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    config = {"train": TRAIN | {"trackers": [tracker]}}
    codes = launch(tmp_path, 2, config, environment=SECRETS | {"WANDB_MODE": "offline"})
    assert codes == [0, 0], log(tmp_path)
    expected, found = told(tmp_path), reads(tmp_path)
    assert {("loss", 10), ("loss", 1)} < expected.keys() == found.keys()
    assert all(math.isclose(found[key], value, rel_tol=1e-6) for key, value in expected.items())
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or not any(secret.encode() in file.read_bytes() for secret in SECRETS.values()), file
