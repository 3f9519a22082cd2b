"""The core on real ranks: killed at any step it ends bit for bit like an undisturbed run; all stop together."""

from __future__ import annotations

import gc
import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.base.errors import UserError
from recap.randomness import permute, place
from recap.train import loop, parallel
from recap.train.settings import TrainSettings, check, learning_rate
from tests.train.ranks import curve, launch, log

TRAIN = {"samples": 240, "batch": 12, "save_every": 48, "seed": 3, "threads": 1}


def run(directory: Path, world: int, *, gang: dict[str, Any] | None = None, **train: Any) -> list[int]:
    return launch(directory, world, {"train": TRAIN | train}, **(gang or {}))


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "exports/final/weights.pt")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 10), st.integers(0, 5))
def test_order_is_a_permutation_of_its_own_in_each_epoch(size: int, seed: int, epoch: int) -> None:
    found = [permute(value, size, seed, epoch) for value in range(size)]
    assert sorted(found) == list(range(size))
    assert place(seed, epoch * size, size) == (epoch, found[0])


def test_order_is_shuffled_and_epochs_differ() -> None:
    first = [permute(value, 1000, 0, 0) for value in range(1000)]
    second = [permute(value, 1000, 0, 1) for value in range(1000)]
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 20
    assert sum(abs(a - b) == 1 for a, b in pairwise(first)) < 20


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_no_step_has_the_rate_zero(schedule: str, steps: int) -> None:
    """Falling, they are those of a step's beginning, as in transformers."""
    chosen = TrainSettings(schedule=schedule, warmup=0.0, batch=8)
    ours = [learning_rate(chosen, 8 * (step + 1), 8 * steps) for step in range(steps)]
    shares = [step / steps for step in range(steps)]
    theirs = {"cosine": [(1 + math.cos(math.pi * s)) / 2 for s in shares], "linear": [1 - s for s in shares]}
    assert ours == pytest.approx(theirs[schedule]) and min(ours) > 0


def test_warm_up_in_shares_and_in_samples() -> None:
    share, samples = TrainSettings(warmup=0.25, batch=10), TrainSettings(warmup=50, batch=10)
    for chosen in (share, samples):
        rates = [learning_rate(chosen, done, 200) for done in range(10, 210, 10)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[5] == 1.0 and rates[6] < 1.0 and rates[-1] > 0
    assert learning_rate(TrainSettings(warmup=400), 200, 200) == 0.5  # longer than the training


def test_profile_and_time_per_phase(single: Any, tmp_path: Path) -> None:
    """The chosen steps are traced where docs say; every line tells phases, waiting and memory of its steps."""
    assert single(config(samples=60, save_every=0, log_every=1, profile=[2, 3]))[0] == 0
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps-2-3-rank0.json"
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        phases = [line[name] for name in line if name.startswith("s/")]
        assert "s/data" in line and len(phases) > 1 and min(phases) >= 0
        assert 0 <= line["data_wait"] <= 1 and 0.01 < line["peak_memory_gb"] < 100


@pytest.mark.parametrize("steps", [[3], [3, 2], [0, 2]])
def test_steps_to_profile_are_a_first_and_a_last(steps: list[int]) -> None:
    with pytest.raises(UserError, match="profile"):
        check(TrainSettings(samples=48, batch=12, profile=steps), 1)


def test_a_training_of_one_step_learns(single: Any, tmp_path: Path) -> None:
    assert single(config(samples=12, save_every=0))[0] == 0
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["step"] == 1 and line["lr"] == TrainSettings().lr
    from tests.train.tiny import make_task

    torch.manual_seed(TRAIN["seed"])
    begun = dict(make_task(config()).module().named_parameters())
    ended = weights(tmp_path)
    assert all(not torch.equal(begun[name], tensor) for name, tensor in ended.items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lr": 0.0}, "train.lr"), ({"batch": 0}, "train.batch"), ({"warmup": 1.0}, "train.warmup"),
        ({"schedule": "step"}, "train.schedule"), ({"trackers": ["mlflow"]}, "train.trackers"),
    ],
)  # fmt: skip
def test_bad_settings(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        check(TrainSettings(**change))


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"does not divide among 5 ranks. Write 10 or 15"):
        check(TrainSettings(batch=12), ranks=5)
    with pytest.raises(UserError, match="smaller than the 16 ranks"):
        check(TrainSettings(batch=12), ranks=16)


def test_moving_average() -> None:
    """After one horizon an old value weighs 1/e; swapped in for exports, and out again."""
    from recap.train.state import Ema

    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = Ema(module, horizon=100)
    with torch.no_grad():
        module.weight.fill_(0.0)
    for _ in range(10):
        ema.update(10)
    with ema.swapped():
        assert module.weight.item() == pytest.approx(0.36788, rel=1e-4)
    assert module.weight.item() == 0.0


@pytest.mark.parametrize(
    "parallel", [pytest.param("ddp", marks=pytest.mark.slow), pytest.param("fsdp", marks=pytest.mark.slow(ci=True))]
)
def test_killed_ends_bit_for_bit_alike(tmp_path: Path, parallel: str) -> None:
    """kill -9 of one rank at step 10, while checkpoints are written; then told to stop after 3 steps; then to the end.

    On three ranks: with two, the order in which gradients are added cannot show.
    """
    more: dict[str, Any] = {"ema": 100, "parallel": parallel}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, 3, **more) == [0, 0, 0], log(whole)
    assert -9 in run(broken, 3, gang={"kill_at": 10}, **more)
    assert run(broken, 3, gang={"stop_at": 3}, **more) == [75, 75, 75], log(broken)
    assert run(broken, 3, **more) == [0, 0, 0]
    assert log(broken).count("resumed after step") == 6  # three ranks, twice
    assert curve(broken) == curve(whole)  # every bit of every loss, each step once
    assert same(broken, whole)


@pytest.mark.slow
def test_data_workers_and_other_ranks(tmp_path: Path) -> None:
    """Data workers change nothing, killed and resumed; begun on 2 ranks and ended on 3, the order is the same."""
    more: dict[str, Any] = {"parallel": "fsdp", "ema": 100, "log_every": 24}
    assert run(tmp_path / "whole", 2, **more) == [0, 0], log(tmp_path / "whole")
    assert -9 in run(tmp_path / "again", 2, gang={"kill_at": 9}, workers=1, **more)
    assert run(tmp_path / "again", 2, workers=1, **more) == [0, 0]
    assert curve(tmp_path / "again") == curve(tmp_path / "whole") and same(tmp_path / "again", tmp_path / "whole")
    run(tmp_path / "other", 2, gang={"stop_at": 9}, **more)
    assert run(tmp_path / "other", 3, **more) == [0, 0, 0], log(tmp_path / "other")
    assert [step for step, _ in curve(tmp_path / "other")] == [step for step, _ in curve(tmp_path / "whole")]
    # dropout is drawn per rank, so that another number of ranks gives other noise; the data are the same
    for name, tensor in weights(tmp_path / "other").items():
        assert torch.allclose(tensor, weights(tmp_path / "whole")[name], atol=0.05)


class Single:
    """A gang of one rank in this process."""

    rank = local_rank = 0
    world, device = 1, "cpu"

    def __init__(self, directory: Path, stop_at: int = -1) -> None:
        self.directory, self.step, self.stop_at = directory, 0, stop_at
        self.events: list[Any] = []

    def stopping(self) -> int:
        return 75 if self.step == self.stop_at else 0

    def beat(self, **facts: Any) -> None:
        self.step += not facts

    def event(self, event: str, **facts: Any) -> None:
        self.events.append({"event": event, **facts})


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains the tiny task here; returns (exit code, gang)."""
    from recap.train.loop import train
    from tests.train.ranks import free_port
    from tests.train.tiny import TinyConfig, make_task

    def go(config: TinyConfig, **gang: Any) -> tuple[int, Single]:
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        alone = Single(tmp_path, **gang)
        try:
            return train(make_task(config), config.train, alone), alone
        finally:
            torch.distributed.destroy_process_group()

    return go


def config(**changes: Any) -> Any:
    from tests.train.tiny import TinyConfig

    more = {key: changes.pop(key) for key in list(changes) if key not in TrainSettings.__dataclass_fields__}
    return TinyConfig(train=TrainSettings(**TRAIN | changes), **more)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The module, once a step, when its gradients are there."""
    seen: list[torch.nn.Module] = []
    norm = parallel.gradient_norm
    monkeypatch.setattr(parallel, "gradient_norm", lambda module, clip: seen.append(module) or norm(module, clip))
    return seen


def test_nan_stops_with_the_keys(single: Any, tmp_path: Path, stepped: list[torch.nn.Module]) -> None:
    """Exit code 1 (a second try would end alike), the samples are named, neither the weights nor a checkpoint hold the
    damage, though the step after it has begun."""
    code, gang = single(config(nan_at=100, save_every=12))
    assert code == 1 and len(stepped) >= 9
    assert all(p.isfinite().all() for p in stepped[-1].parameters())
    (event,) = [e for e in gang.events if e["event"] == "diverged"]
    assert re.search(r"step 9: .* nan.*s\d+, s\d+", event["reason"])
    for path in (tmp_path / "checkpoints").glob("[0-9]*"):
        assert json.loads((path / "manifest.json").read_text())["progress"]["samples"] <= 96


def test_garbage_is_collected_by_the_count_of_steps(
    single: Any, stepped: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks count the same steps, so they pause at once; between these steps Python collects nothing by itself."""
    collected: list[tuple[int, bool]] = []
    monkeypatch.setattr(loop, "COLLECT_EVERY", 7)
    monkeypatch.setattr(gc, "collect", lambda: collected.append((len(stepped), gc.isenabled())))
    assert gc.isenabled() and single(config())[0] == 0
    assert collected == [(0, True), (7, False), (14, False)] and len(stepped) == 20 and gc.isenabled()


def test_damaged_checkpoints_are_skipped(single: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cut file, a missing manifest and a leftover: the newest whole one is used, and the log says so."""
    assert single(config(keep=4))[0] == 0
    straight = weights(tmp_path)
    found = sorted((tmp_path / "checkpoints").glob("[0-9]*"))
    assert [int(p.name) for p in found] == [96, 144, 192, 240]
    (found[3] / "manifest.json").unlink()
    data = next(found[2].glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (tmp_path / "checkpoints" / ".tmp-000000000000999").mkdir()
    caplog.clear()
    caplog.set_level("INFO")
    assert single(config(keep=4))[0] == 0
    said = caplog.text
    assert "000000000000240 is damaged and is skipped" in said and "is not what was written" in said
    assert "resumed after step 12, 144 samples" in said
    assert all(torch.equal(straight[name], tensor) for name, tensor in weights(tmp_path).items())


def test_what_is_kept(single: Any, tmp_path: Path) -> None:
    single(config(keep=1, keep_every=96))
    assert [int(p.name) for p in sorted((tmp_path / "checkpoints").glob("[0-9]*"))] == [96, 192, 240]


def test_checkpoint_of_another_model(single: Any) -> None:
    single(config(samples=48))
    with pytest.raises(UserError, match="is of another model"):
        single(config(samples=48, width=8))
    with pytest.raises(UserError, match=r"train.batch. cannot change within a run"):
        single(config(samples=96, batch=36))
    with pytest.raises(UserError, match="seed"):
        single(config(samples=48, seed=4))


def test_disk_full_while_saving(single: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A save that fails costs nothing: training goes on, the next save holds; if the last fails it ends with 75."""
    import torch.distributed.checkpoint.filesystem as storage

    real, calls = os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) in broken:
            raise OSError(28, "No space left on device")
        real(fd)

    broken = {1}
    monkeypatch.setattr(storage.os, "fsync", full)
    assert single(config(samples=96))[0] == 0
    assert "No space left on device" in caplog.text
    assert [int(p.name) for p in sorted((tmp_path / "checkpoints").glob("[0-9]*"))] == [96]
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    broken = set(range(1000))
    assert single(config(samples=144))[0] == 75
    assert [int(p.name) for p in sorted((tmp_path / "checkpoints").glob("[0-9]*"))] == [96]


def test_rejected_samples_are_counted_and_limited(single: Any, tmp_path: Path) -> None:
    code, gang = single(config(reject=100))
    events = [e for e in gang.events if e["event"] == "rejected"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert code == 0 and len(events) == lines[-1]["rejected"] > 0
    with pytest.raises(UserError, match="rejected, more than"):
        single(config(reject=3, samples=1200, seed=3))
