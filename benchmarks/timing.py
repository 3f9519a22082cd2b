"""Clocks of the benchmarks: of a device, of this process, of a GPU's own sensors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from recap import device as gpu


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def seconds(action: Callable[..., Any], device: torch.device) -> float:
    """Wall-clock time of an action, device included."""
    gpu.synchronise(device)
    start = time.perf_counter()
    action()
    gpu.synchronise(device)
    return time.perf_counter() - start


def cpu_seconds(action: Callable[..., Any]) -> tuple[float, float]:
    """CPU seconds of this process and wall-clock seconds of an action."""
    cpu, clock = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - clock


def milliseconds(action: Callable[..., Any], device: torch.device, calls: int = 10) -> float:
    """Mean time of a call on the device, by CUDA events (the clock on CPUs); the first call is not counted."""
    action()
    if device.type != "cuda":
        return seconds(lambda: [action() for _ in range(calls)], device) / calls * 1e3
    begin = gpu.mark(timing=True)
    for _ in range(calls):
        action()
    end = gpu.mark(timing=True)
    end.synchronize()
    return begin.elapsed_time(end) / calls


def best_time(action: Callable[..., Any], device: torch.device, spend_s: float) -> float:
    """Seconds of one call: sustained mean on GPUs (power limits), the best of many on shared CPUs."""
    for _ in range(3):
        action()
    times: list[float] = []
    stop = time.perf_counter() + spend_s
    calls = 20 if device.type == "cuda" else 1
    while not times or time.perf_counter() < stop:
        times.append(seconds(lambda: [action() for _ in range(calls)], device) / calls)
    return float(np.mean(times[len(times) // 2 :])) if device.type == "cuda" else min(times)


class DeviceMonitor:
    """Clocks, power and temperature of a GPU during a `with` block, once a second; nothing without nvidia-smi."""

    FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")

    def __init__(self, unit: str, every_s: float = 1.0) -> None:
        query = [f"--query-gpu={','.join(self.FIELDS)}", "--format=csv,noheader,nounits", "-i", unit]
        self.command, self.every_s = ["nvidia-smi", *query], every_s
        self.found: dict[str, dict[str, float]] = {}
        self.lines: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DeviceMonitor:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.found = self.summary(self.lines)

    def _watch(self) -> None:
        while True:
            try:
                done = subprocess.run(self.command, capture_output=True, text=True, timeout=10)
            except (OSError, subprocess.TimeoutExpired):
                return
            self.lines += done.stdout.splitlines()
            if done.returncode or self.stop.wait(self.every_s):
                return

    def summary(self, lines: list[str]) -> dict[str, dict[str, float]]:
        """Mean, least and most of each field; rows that are cut or that the GPU has no numbers for are left out."""
        rows = []
        for line in lines:
            try:
                row = [float(value) for value in line.split(",")]
            except ValueError:
                continue
            if len(row) == len(self.FIELDS):
                rows.append(row)
        columns = zip(self.FIELDS, zip(*rows, strict=True), strict=True) if rows else ()
        return {name: {"mean": float(np.mean(c)), "min": min(c), "max": max(c)} for name, c in columns}

    def __str__(self) -> str:
        if not self.found:
            return "clocks and power: nvidia-smi gives none"
        parts = [f"{name} {v['mean']:.0f} ({v['min']:.0f}-{v['max']:.0f})" for name, v in self.found.items()]
        return "mean (least-most): " + ", ".join(parts)
