"""Atomic checkpoints, written by a thread while the training goes on.

    checkpoints/<samples>/          complete: .metadata, *.distcp, manifest.json
    checkpoints/.tmp-<samples>/     being written, or left by a crash

A save copies the tensors to host memory that is reused for all saves; only for this the loop waits. Then a thread
writes them (torch.distributed.checkpoint, every file fsynced), adds each rank's digests to the manifest and renames the
folder. Only then are older checkpoints deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from hpc.base import atomic
from hpc.base.errors import UserError
from recap import device as gpu
from recap.train.state import Progress, TrainState

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept: the `newest` last ones, and those at multiples of `every` samples (0: none)."""

    newest: int = 2
    every: int = 0


@dataclass(frozen=True)
class StartingPoint:
    """What a training started from. A checkpoint of a training with another starting point is refused.

    identity: hash of the initial weights and of the order of samples.
    columns: digest of each column's manifest, by name (none in checkpoints from before there were manifests).
    """

    identity: str
    columns: dict[str, str] = field(default_factory=dict)

    def check(self, path: Path, manifest: dict[str, Any]) -> None:
        """UserError where a checkpoint's manifest has another starting point. path: of the checkpoint."""
        if manifest["identity"] != self.identity:
            raise UserError(
                f"checkpoint: {path} is of another model or of other data (identity {manifest['identity']}, this run "
                f"has {self.identity}). Choose another `name=`, or restore what training began from: the weights, and "
                "the shards in data.shards."
            )
        for name, digest in manifest.get("columns", {}).items():
            if self.columns.get(name, digest) != digest:
                raise UserError(
                    f"checkpoint: {path} was trained on column {name} as another {name}.arrow in columns/ of this run "
                    "says (it was deleted or replaced). Put it back, or choose another `name=`."
                )


class Checkpoints:
    """The checkpoints of a run. Every method but `saved` must be called by all ranks together.

    Args:
        group: a gloo group of its own, since saves run at the same time as the training's collectives.
    """

    def __init__(self, folder: Path, starting_point: StartingPoint, group: dist.ProcessGroup, keep: Keep) -> None:
        self.folder, self._began, self._group, self._keep = folder, starting_point, group, keep
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        self._saving: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last: int | None = None  # samples of the newest complete checkpoint that this process knows of
        self.stall_s = 0.0  # how long the loop waited for the last save
        cuda = gpu.available()  # page-locked host memory: faster copies, allocated once
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
            )
        )
        folder.mkdir(parents=True, exist_ok=True)

    # --- saving -----------------------------------------------------------------------------

    def save(self, state: TrainState) -> None:
        """Begin to save; returns once the tensors are staged. Waits for the previous save first."""
        self.wait()
        start = time.monotonic()
        samples = state.progress.samples
        making = self.folder / f".tmp-{samples:015d}"
        if self._rank == 0:
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
        dist.barrier(self._group)
        manifest = asdict(self._began) | {"world": self._world, "progress": asdict(state.progress)}
        future = dcp.async_save(
            state.tensors(), checkpoint_id=making, process_group=self._group, async_stager=self._stager
        )
        assert isinstance(future, Future)
        self._saving = threading.Thread(
            target=self._finish, args=(future, making, samples, manifest), name="checkpoint", daemon=True
        )
        self._saving.start()
        self.stall_s = time.monotonic() - start

    def wait(self) -> bool:
        """Wait for the save in progress. False if it failed on any rank; that is logged, and older checkpoints
        remain."""
        if self._saving is not None:
            self._saving.join()
            self._saving = None
        failed, self._error = self._error, None
        return failed is None

    @property
    def saving(self) -> bool:
        return self._saving is not None and self._saving.is_alive()

    def _finish(self, future: Future[Any], making: Path, samples: int, manifest: dict[str, Any]) -> None:
        try:
            future.result()
            parts = self._exchange(lambda: {p.name: _facts(p) for p in sorted(making.iterdir()) if self._mine(p.name)})
            manifest["files"] = {name: facts for part in parts for name, facts in part.items()}
            self._exchange(lambda: self._publish(making, samples, manifest) if self._rank == 0 else None)
            self.last = samples
        except BaseException as error:  # noqa: BLE001 - reported; the training goes on with the older checkpoints
            cause = _innermost(error)
            log.error("checkpoint %s: not saved: %s: %s", samples, type(cause).__name__, cause)
            self._error = cause
            if self._rank == 0:
                shutil.rmtree(making, ignore_errors=True)

    def _exchange(self, work: Callable[[], Any]) -> list[Any]:
        """The results of `work` on all ranks. Raises on all ranks if it raised on one, so that none is left waiting."""
        try:
            mine = (work(), "")
        except OSError as error:
            mine = (None, f"rank {self._rank}: {error}")
        found: list[Any] = [None] * self._world
        dist.all_gather_object(found, mine, group=self._group)
        if problems := [problem for _, problem in found if problem]:
            raise OSError("; ".join(problems))
        return [result for result, _ in found]

    def _publish(self, making: Path, samples: int, manifest: dict[str, Any]) -> None:
        atomic.write_synced(making / MANIFEST, json.dumps(manifest).encode())
        atomic.sync(making)
        target = self._path(samples)
        shutil.rmtree(target, ignore_errors=True)  # a damaged checkpoint of this name
        making.rename(target)
        atomic.sync(self.folder)
        self._prune()

    def _mine(self, name: str) -> bool:
        match = re.match(r"__(\d+)_", name)
        return int(match[1]) == self._rank if match else self._rank == 0

    def _prune(self) -> None:
        complete = [samples for samples in self.saved() if (self._path(samples) / MANIFEST).is_file()]
        for samples in complete[: -self._keep.newest]:
            if not (self._keep.every and samples % self._keep.every == 0):
                shutil.rmtree(self._path(samples), ignore_errors=True)

    # --- loading ----------------------------------------------------------------------------

    def saved(self) -> list[int]:
        """Samples of the checkpoints that have their final name, oldest first."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def _path(self, samples: int) -> Path:
        return self.folder / f"{samples:015d}"

    def load(self, state: TrainState, samples: int | None = None) -> bool:
        """Fill the state from the newest checkpoint that is whole, or from the given one. False where there is none.

        The number of ranks may differ from the one that wrote it.

        Raises:
            UserError: the checkpoint is of another model.
        """
        for found in reversed(self.saved() if samples is None else [samples]):
            manifest = self._verified(found)
            if manifest is None:
                continue
            self._began.check(self._path(found), manifest)
            tensors = state.tensors()
            try:
                dcp.load(tensors, checkpoint_id=self._path(found), process_group=self._group)
            except dcp.CheckpointException as error:
                raise UserError(
                    f"checkpoint: {self._path(found)} does not fit this model: {_innermost(error)}. "
                    "Were `trainable` or the optimizer changed? Choose another `name=`."
                ) from error
            state.load(tensors, Progress(**manifest["progress"]))
            self.last = found
            return True
        return False

    def _verified(self, samples: int) -> dict[str, Any] | None:
        """The manifest of a checkpoint that is whole; None for a damaged one, which is logged. Each rank verifies a
        part."""
        path, problem = self._path(samples), ""
        manifest: dict[str, Any] = {}
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            for name in sorted(manifest["files"])[self._rank :: self._world]:
                if _facts(path / name) != manifest["files"][name]:
                    problem = f"{name} is not what was written"
        except (OSError, ValueError, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
        problems: list[Any] = [None] * self._world
        dist.all_gather_object(problems, problem, group=self._group)
        if found := next((p for p in problems if p), None):
            log.warning("checkpoint %s is damaged and is skipped: %s", path, found)
            return None
        return manifest


def _facts(path: Path) -> list[Any]:
    """[bytes, sha256] of a file."""
    with open(path, "rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _innermost(error: BaseException) -> BaseException:
    """The error that torch.distributed.checkpoint wrapped in its own."""
    failures = getattr(error, "failures", None)
    if failures:
        first = next(iter(failures.values()))
        return _innermost(first[0] if isinstance(first, tuple) else first)
    return error


def read_model(folder: Path, module: nn.Module, samples: int | None = None) -> dict[str, torch.Tensor]:
    """The trained parameters of a checkpoint (default: the newest) as full tensors, in one process; for exports.

    Args:
        module: the module that was trained, unsharded, with the same parameters frozen.
        samples: names the checkpoint.
    """
    names = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    if not names or (samples is not None and samples not in names):
        raise UserError(f"export: {folder} holds {names or 'no checkpoint'}, not {samples or 'any'}")
    weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    path = folder / f"{samples or names[-1]:015d}"
    dcp.load({"model": weights}, checkpoint_id=path, no_dist=True)
    return weights
