"""A server that the engine starts: filled in, waited for, started again, and gone with the engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.random_captioner import photo
from hpc import launch
from hpc.base import keeper
from hpc.base.errors import Exit, UserError
from hpc.run.published import Published
from recap.demo import CAPTIONER
from recap.engine import Caption, CaptionerConfig, Request, load_engine, managed_server
from recap.engine.endpoint import EndpointEngine
from recap.engine.identity import captioner_identity
from recap.engine.settings import ServerConfig, check
from tests.engine.conftest import drive
from tests.support.jobs import ENVIRONMENT, ROOT, wait_for
from tests.support.scripted_server import says


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("chat.FIRST_WAIT_S", 0.01), ("outage.FIRST_PAUSE_S", 0.05), ("outage.LONGEST_PAUSE_S", 0.05),
                        ("managed_server.LOOK_S", 0.1), ("managed_server.HEALTH_S", 1.0)):  # fmt: skip
        monkeypatch.setattr(f"recap.engine.{name}", value)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """The folder that tells the servers what to do. Nothing that they started is left when the test is over."""
    yield tmp_path
    wait_for(lambda: not living(tmp_path))


def pids(control: Path) -> list[int]:
    """All that servers have started so far, themselves included."""
    found = []
    for path in (control / "pids").glob("*"):
        found.append(int(path.read_text() or path.name))
    return found


def living(control: Path) -> list[int]:
    return [pid for pid in pids(control) if Path(f"/proc/{pid}").exists()]


def server_of(control: Path) -> int:
    """The server that runs now."""
    (found,) = [
        pid for path in (control / "pids").glob("server-*") if Path(f"/proc/{(pid := int(path.read_text()))}").exists()
    ]
    return found


def engine_of(control: Path) -> int:
    """The engine whose server runs now: the parent of its keeper."""
    keeper = psutil.Process(server_of(control)).parent()
    assert keeper is not None
    return keeper.ppid()


def agent_of(control: Path) -> int:
    return psutil.Process(engine_of(control)).ppid()


def settings(control: Path, **server: Any) -> CaptionerConfig:
    command = [sys.executable, "-m", "tests.support.scripted_server", "--port", "{port}", "--control", str(control),
               "--model", "{model}", "--tensor-parallel-size", "{gpus}"]  # fmt: skip
    given = {"command": command, "env": {"PYTHONPATH": str(ROOT)}, "start_s": 120.0, "hang_s": 2.0, **server}
    return CaptionerConfig(
        backend="openai", model=str(CAPTIONER), window=4, server=ServerConfig(**given), endpoint_timeout_s=20.0
    )  # fmt: skip


def test_it_is_started_waited_for_and_ended(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (control / "unhealthy").write_text("3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    monkeypatch.setenv("HPC_LOG", str(control / "slot_0.log"))
    engine = load_engine(settings(control))
    assert isinstance(engine, EndpointEngine) and engine._managed is not None
    found = drive(engine, [Request(i, photo(i)) for i in range(6)])
    assert {i: caption.text for i, caption in found.items()} == {i: says(photo(i)) for i in range(6)}
    assert len(living(control)) == 2
    begun = time.monotonic()
    engine.close()
    assert not living(control) and time.monotonic() - begun < 20
    log = engine._managed.log
    assert log.parent == control and log.name.startswith("slot_0.server-")
    assert re.search(rf"--port \d+ .*--model {re.escape(str(CAPTIONER))} --tensor-parallel-size 2", log.read_text())


@pytest.mark.parametrize("fault", ["killed", "stopped", "failing", "hanging"])
def test_it_is_started_again(fault: str, control: Path) -> None:
    """Every image gets its caption, once, whatever becomes of the server."""
    with closing(load_engine(settings(control))) as engine:
        assert isinstance(engine, EndpointEngine) and engine._managed is not None
        assert drive(engine, [Request(0, photo(0))])[0].text == says(photo(0))
        first = server_of(control)
        if fault in ("failing", "hanging"):
            (control / fault).touch()
        else:
            os.kill(first, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        for number in range(1, 5):
            engine.put(Request(number, photo(number)))
        found: list[Caption] = []

        def restarted() -> bool:
            found.extend(engine.poll(0.05))
            return not Path(f"/proc/{first}").exists()

        if fault == "hanging":  # one that is merely slow is left alone
            wait_for(lambda: not restarted() and engine.waiting == "" and not found)
        else:
            wait_for(restarted)
        for name in ("failing", "hanging"):
            (control / name).unlink(missing_ok=True)
        wait_for(lambda: restarted() is not None and len(found) >= 4)
        assert sorted((caption.id, caption.text) for caption in found) == [(n, says(photo(n))) for n in range(1, 5)]
        assert engine.poll(0.1) == []


def test_one_that_never_gets_healthy_names_its_log(control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_LOG", str(control / "slot_0.log"))
    (control / "unhealthy").write_text("always")
    with pytest.raises(
        UserError, match=r"was not healthy within .*start_s=3 s. Its log: .*slot_0.server-\d+.log"
    ) as told:
        load_engine(settings(control, start_s=3.0))
    assert "scripted server:" in str(told.value) or not pids(control)
    with pytest.raises(UserError, match=r"ended with 127 before it was healthy.*no-such-server"):
        load_engine(settings(control, command=["no-such-server", "--port", "{port}"]))


class Gone:
    """How long processes take to be gone after a kill, polled; and what so busy a machine makes of a wait as long as a
    keeper's: a process that sleeps so long is started beside it.
    """

    LIMIT_S = 5.0
    START_S = 0.2  # more than an idle machine takes to start a process

    def __init__(self, pid: int, tree: list[int]) -> None:
        assert len(tree) == 2, "a server, and what it started in a session of its own that ignores SIGTERM"
        waits = keeper.LOOK_S + keeper.GRACE_S
        begun = time.monotonic()
        beside = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({waits})"])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in tree))
        self.seconds = time.monotonic() - begun
        beside.wait()
        self.sleeper = time.monotonic() - begun

    def check(self) -> None:
        print(f"gone {self.seconds:.2f} s after the kill, a mere sleeper {self.sleeper:.2f} s")  # noqa: T201
        stretched = max(1.0, self.sleeper / (keeper.LOOK_S + keeper.GRACE_S + self.START_S))
        assert self.seconds < self.LIMIT_S * stretched, (self.seconds, self.sleeper)


@pytest.mark.slow(ci=True)
def test_nothing_is_left_five_seconds_after_an_engine_is_killed(control: Path) -> None:
    """By SIGKILL: not its server, nor what that started in a session of its own and which ignores SIGTERM."""
    assert keeper.LOOK_S + keeper.GRACE_S <= 2.0, "the rest of the five seconds is a busy machine's"
    code = (
        "import recap, sys, time; from tests.engine.test_managed_server import *\n"
        "engine = load_engine(settings(Path(sys.argv[1]))); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(control)], stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as engine:
        assert engine.stdout is not None and engine.stdout.readline() == b"ready\n"
        Gone(engine.pid, living(control)).check()


@pytest.mark.slow(ci=True)
def test_a_job_whose_server_engine_and_agent_are_killed(control: Path) -> None:
    """Launched as users do; each is killed (SIGKILL) under it in turn. Every sample once, and nothing is left behind of
    a server whose engine, or whose agent, is no more.
    """
    command = settings(control).server.command
    arguments = [
        "configs/caption/demo.yaml", f"runs={control}", "data.shards=[recap/demo/flags/00000.tar]",
        "captioner.backend=openai", f"captioner.server.command={command!r}", "captioner.server.hang_s=5",
        f"captioner.server.env={{PYTHONPATH: {ROOT}}}", "captioner.endpoint_timeout_s=20",
    ]  # fmt: skip
    (control / "hanging").touch()
    process = subprocess.Popen([sys.executable, "-m", "hpc.launch", *arguments], cwd=ROOT, env=ENVIRONMENT)
    killed: list[int] = []
    for victim in (server_of, engine_of, agent_of):
        wait_for(lambda: len(list((control / "pids").glob("server-*"))) > len(killed) and len(living(control)) == 2)
        tree = living(control)
        killed.append(victim(control))
        Gone(killed[-1], tree).check()
    (control / "hanging").unlink()
    assert process.wait(timeout=300) == 0
    (shard,) = Published(control / "demo").shards
    found = Published(control / "demo").find(shard.id)
    assert found is not None
    rows = found.table().to_pylist()
    assert len(rows) == found.marker["rows"] and {row["status"] for row in rows} == {"ok"}
    assert len({row["key"] for row in rows}) == len(rows) and all(
        row["caption"].startswith("A picture") for row in rows
    )
    assert len(list((control / "pids").glob("server-*"))) == len(killed) + 1
    assert list((control / "demo" / "logs").glob("*server-*.log"))


def test_identity_and_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that are seen are in the identity, else the name and revision; no path, and not where it runs."""
    command = ["serve", "{model}", "{port}"]

    def identity(**changes: Any) -> dict[str, Any]:
        server = ServerConfig(command=changes.pop("command", command))
        config = CaptionerConfig(backend="openai", server=server, **changes)
        check(config)
        return captioner_identity(config)

    seen = identity(model=str(CAPTIONER))
    assert seen["model"]["model.safetensors"] and str(CAPTIONER) not in str(seen)
    assert identity(model=str(CAPTIONER), command=[*command, "--more"]) == seen
    assert identity(model="Qwen/Qwen3-VL-8B-Instruct")["model"] == "Qwen/Qwen3-VL-8B-Instruct"
    assert "model" not in identity(model="/there/only", served_model="mine", served_revision="a1")
    assert identity(model="/x", served_model="mine", served_revision="a") != identity(
        model="/x", served_model="mine", served_revision="b"
    )
    given = ["configs/caption/demo.yaml", f"runs={tmp_path}", "--dry-run"]
    for wrong, told in (
        (["captioner.server.command=[serve]"], "{port} is nowhere in it"),
        (["captioner.server.command=[serve,'{port}']", "captioner.endpoint=http://a:1/v1"], "leave one of both out"),
        (["captioner.server.command=[serve,'{port}']", "captioner.model=/there/only"], "neither a folder"),
        (["captioner.server.command=[serve,'{port}']", "captioner.server.start_s=1800"], "map.setup_s=1800"),
        (["captioner.server.command=[serve,'{port}']", "captioner.seed=0"], "set backend=openai"),
    ):
        backend = "native" if "backend=openai" in told else "openai"
        assert launch.main([*given, f"captioner.backend={backend}", *wrong]) == Exit.USAGE
        assert told in " ".join(capsys.readouterr().err.split()), wrong


def test_several_servers_share_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three is dead from the start, another dies on the way and comes back: each image is captioned once, by
    those alive, the one that came back among them."""
    monkeypatch.setattr("recap.engine.fleet.OUT_S", 0.2)
    folders = [tmp_path / name for name in "ab"]
    ports = [managed_server._free_port() for _ in range(3)]
    started = []
    for folder, port in zip(folders, ports[:2], strict=True):
        command = [sys.executable, "-m", "tests.support.scripted_server", "--port", str(port), "--control", str(folder)]
        started.append(subprocess.Popen(command, env=ENVIRONMENT))
    try:
        wait_for(
            lambda: all(
                (folder / "pids" / f"server-{port}").exists() for folder, port in zip(folders, ports[:2], strict=True)
            )
        )
        config = CaptionerConfig(
            backend="openai", endpoint=[f"http://127.0.0.1:{port}/v1" for port in ports], served_model="m", window=4,
            endpoint_timeout_s=60.0,
        )  # fmt: skip
        with closing(load_engine(config)) as engine:
            found = drive(engine, [Request(i, photo(i)) for i in range(8)])
            assert min(len((folder / "asked").read_text()) for folder in folders) > 0, "both are asked"
            os.kill(int((folders[0] / "pids" / f"server-{ports[0]}").read_text()), signal.SIGKILL)
            started[0].wait()
            found |= drive(engine, [Request(i, photo(i)) for i in range(8, 16)])
            asked = (folders[0] / "asked").stat().st_size
            started[0] = subprocess.Popen(started[0].args, env=ENVIRONMENT)
            total = 16

            def used_again() -> bool:
                nonlocal total
                found.update(drive(engine, [Request(i, photo(i)) for i in range(total, total + 4)]))
                total += 4
                return (folders[0] / "asked").stat().st_size > asked

            wait_for(used_again)
        assert {i: caption.text for i, caption in found.items()} == {i: says(photo(i)) for i in range(total)}
    finally:
        for folder, process in zip(folders, started, strict=True):
            for pid in living(folder):
                os.kill(pid, signal.SIGKILL)
            process.wait()
