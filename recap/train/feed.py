"""Reads batches ahead: processes or a thread make them, a queue holds them. Waiting for one can be interrupted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hpc.base.processes import leave_signals_to_parent
from recap import device as gpu
from recap.train.settings import TrainSettings
from recap.train.task import Batch, Task


class _Steps(Dataset[Batch]):
    """This rank's batch of each step, by the step's number."""

    def __init__(self, task: Task, size: int, rank: int, world: int) -> None:
        self._task, self._size, self._rank, self._world = task, size, rank, world

    def __getitem__(self, step: int) -> Batch:
        return self._task.batch(step * self._size, self._size, self._rank, self._world)


def _init_worker(_: int) -> None:
    """Set up a data worker: the rank handles signals, and workers end when their rank dies."""
    leave_signals_to_parent()
    torch.set_num_threads(1)


def pinned(value: Any) -> Any:
    """A copy of nested lists and dicts with all tensors in page-locked memory."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {k: pinned(v) for k, v in value.items()}
    return [pinned(v) for v in value] if isinstance(value, list) else value


class Feed:
    """The batches of steps first, first + 1, ..., last - 1, in order."""

    def __init__(self, task: Task, settings: TrainSettings, rank: int, world: int, first: int, last: int) -> None:
        steps = _Steps(task, settings.batch, rank, world)
        workers = settings.workers
        self._loader = DataLoader(
            steps, batch_size=None, sampler=range(first, last), num_workers=workers,
            worker_init_fn=_init_worker, prefetch_factor=settings.prefetch if workers else None,
            multiprocessing_context="fork" if workers else None,  # workers share the corpus's memory
        )  # fmt: skip
        self._pin = gpu.available()  # copies from pageable memory would wait for the device
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=settings.prefetch)
        self._closed = threading.Event()
        # The iterator is made here, so that the main thread forks the workers, before any step.
        self._thread = threading.Thread(target=self._read, args=(iter(self._loader),), name="feed", daemon=True)
        self._thread.start()

    def _read(self, batches: Iterator[Batch]) -> None:
        try:
            for batch in batches:
                if self._pin:
                    batch.micro = pinned(batch.micro)
                if not self._offer(batch):
                    return
        except BaseException as error:  # noqa: BLE001 - raised where the batch is wanted
            self._offer(error)

    def _offer(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def next(self, stop: Callable[[], bool]) -> Batch | None:
        """The next batch; None if `stop()` becomes true while waiting. Raises the reader's error, if there was one."""
        while True:
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                if stop():
                    return None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def close(self) -> None:
        self._closed.set()
