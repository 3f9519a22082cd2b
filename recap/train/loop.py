"""The training loop, as a list of phases. Everything that must survive an interruption is in `TrainState`."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpc.base.errors import Exit, UserError
from hpc.trainer import Gang
from recap.train import parallel, ranks
from recap.train.checkpoints import Checkpoints, Keep, StartingPoint
from recap.train.evaluation import Interrupted, evaluate
from recap.train.feed import Feed
from recap.train.metrics import Metrics
from recap.train.profile import Profile
from recap.train.record import Recorder
from recap.train.settings import TrainSettings, check, learning_rate, length
from recap.train.state import Ema, TrainState, optimizer_of, seed_step
from recap.train.task import Batch, Constrains, Evaluates, ReadsColumns, Task

log = logging.getLogger(__name__)

TIMEOUT_S = 7 * 86400.0  # of a collective: hung ranks are ended by the gang's watchdog (gang.setup_s, gang.hang_s)


COLLECT_EVERY = 100  # steps; of Python's garbage, on all ranks at once: one that pauses holds up the others


class Diverged(Exception):
    """The gradient is not finite. A retry would end in the same way."""


class Training:
    """One rank of a training, from a start or restart to its end. Begin reading with `run`."""

    def __init__(self, task: Task, settings: TrainSettings, gang: Gang) -> None:
        check(settings, gang.world)
        if settings.threads and gang.device == "cpu":
            torch.set_num_threads(settings.threads)
        if settings.evaluate_every and not isinstance(task, Evaluates):
            raise UserError("config: `train.evaluate_every`: this trainer has nothing to evaluate. Leave it out.")
        self.task, self.settings, self.gang = task, settings, gang
        self.ranks = ranks.join(gang.device, gang.local_rank, TIMEOUT_S)
        self.total = length(settings, task.size())
        if not self.total:
            raise UserError("config: `train.samples`: there is nothing to train on")
        parallel.state_precision(settings, self.ranks.device)
        torch.manual_seed(settings.seed)
        self.module = parallel.build(task, settings, self.ranks)
        identity = self.ranks.broadcast_from_rank0(task.identity)
        optimizer = optimizer_of(self.module, task, settings)
        ema = Ema(self.module, settings.ema) if settings.ema else None
        self.state = TrainState(self.module, optimizer, ema, settings.seed)
        keep = Keep(settings.keep, settings.keep_every)
        folder = Path(gang.directory)
        starting_point = StartingPoint(identity, task.manifests() if isinstance(task, ReadsColumns) else {})
        self.checkpoints = Checkpoints(folder / "checkpoints", starting_point, self.ranks.saving, keep)
        self.metrics = Metrics(folder / "metrics.jsonl", settings.trackers) if gang.rank == 0 else None
        self.profile = Profile(settings.profile, folder / "profile", gang.rank)
        self.recorder = Recorder(self.state, self.ranks, self.metrics)
        self.unchecked: tuple[parallel.AsyncScalar, list[str], int] | None = None
        self.lr = 0.0
        self.stop = 0  # the exit code that the ranks agreed to stop with
        self.warmed_up = not parallel.reorders_first_reduction(self.module)
        self.reduces_once_per_step = parallel.reduces_once_per_step(self.module, self.ranks.device)

    # --- the story --------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or until a signal to stop. Returns the exit code, which is the same on every rank."""
        self.resume()
        feed = self.feed()
        try:
            self.evaluate_if_due()  # one that was interrupted by a stop before this restart
            with no_collection():
                self.steps(feed)
            self.save()
        except Diverged as error:
            log.error("%s", error)
            self.gang.event("diverged", reason=str(error)[:500])
            return Exit.INCOMPLETE
        finally:
            feed.close()
            self.profile.close()
            if self.metrics is not None:
                self.metrics.close()
        return self.stop or self.export()

    def steps(self, feed: Feed) -> None:
        """All steps, until the end or until the ranks agree to stop. A step waits for the device only where it needs
        numbers of the step before it."""
        while not self.finished and not self.stop:
            step = self.state.progress.step + 1
            self.profile.begin(step)
            batch = self.fetch(feed)
            weight = self.agree(batch)
            if batch is None or self.stop:
                break
            self.warm_up(batch)
            loss = self.gradients(batch, weight)
            self.update(batch, loss, weight)
            self.record()
            self.profile.end(step)
            self.evaluate_if_due()
            self.save_if_due()
            if step % COLLECT_EVERY == 0:
                gc.collect()

    @property
    def finished(self) -> bool:
        return self.state.progress.samples >= self.total

    # --- phases -----------------------------------------------------------------------------

    def resume(self) -> None:
        """Load the newest whole checkpoint, whatever number of ranks wrote it."""
        if self.checkpoints.load(self.state):
            progress = self.state.progress
            if progress.seed != self.settings.seed:
                raise UserError(f"checkpoint: written with train.seed={progress.seed}; the order would change")
            log.info("resumed after step %d, %s samples", progress.step, f"{progress.samples:,}")
        constrain(self.task, self.module)
        if self.metrics is not None:
            self.metrics.resume(self.state.progress.metrics_bytes)
        self.module.train()
        self.report_progress()

    def feed(self) -> Feed:
        first, last = self.state.progress.step, self.total // self.settings.batch
        if self.settings.batch * first != self.state.progress.samples:
            raise UserError(
                f"checkpoint: {self.state.progress.samples} samples are not a whole number of batches of "
                f"{self.settings.batch}. `train.batch` cannot change within a run."
            )
        return Feed(self.task, self.settings, self.ranks.rank, self.ranks.world, first, last)

    def fetch(self, feed: Feed) -> Batch | None:
        """This rank's next batch; None if it is told to stop while it waits."""
        with self.recorder.meter.phase("data", host=True):
            batch = feed.next(lambda: self.gang.stopping() != 0)
        for key, reason in batch.rejected if batch else []:
            log.warning("sample %s is rejected: %s", key, reason)
            self.gang.event("rejected", key=key, reason=reason)
        return batch

    def agree(self, batch: Batch | None) -> float:
        """The start of a step: one small all-reduce gives the weight of the batch over all ranks, and decides whether
        all ranks stop here."""
        wish = self.gang.stopping()
        counts = [batch.weight, batch.tokens, batch.useful, batch.flops, len(batch.rejected)] if batch else [0.0] * 5
        votes = [float(wish == Exit.REQUEUE), float(wish not in (0, Exit.REQUEUE)), float(batch is None)]
        weight, tokens, useful, flops, rejected, requeue, leave, none = self.ranks.sums(counts + votes)
        if requeue or leave or none:
            self.stop = Exit.REQUEUE if requeue else Exit.INCOMPLETE
            return 0.0
        self.recorder.meter.add(self.settings.batch, tokens, useful, flops)
        self.recorder.rejected(reason for _, reason in (batch.rejected if batch else []))
        self._count_rejected(int(rejected))
        return weight

    def _count_rejected(self, rejected: int) -> None:
        progress = self.state.progress
        progress.rejected += rejected
        seen = progress.samples + self.settings.batch
        if rejected and progress.rejected > max(self.settings.max_rejected * max(seen, 1000), 0):
            raise UserError(
                f"data: {progress.rejected:,} of {seen:,} samples were rejected, more than "
                f"train.max_rejected={self.settings.max_rejected:g} allows. The log and journal/ name each with its "
                "reason: mend them, leave them out (keep: RUN, a caption run that has met them), or allow more and "
                "launch with --supersede."
            )

    def warm_up(self, batch: Batch) -> None:
        """Run a first pass whose gradients are discarded, where DDP reduces the first pass in another order than later
        ones. Otherwise a resumed run would differ from an uninterrupted one in the last bit."""
        if not self.warmed_up:
            self.gradients(replace(batch, micro=batch.micro[-1:]), batch.weight)
            self.state.optimizer.zero_grad(set_to_none=True)
            self.warmed_up = True

    def gradients(self, batch: Batch, weight: float) -> torch.Tensor:
        """Forward and backward of all micro-batches. Returns this rank's sum of losses, on the device."""
        with self.recorder.meter.phase("gradients"):
            return self._gradients(batch, weight)

    def _gradients(self, batch: Batch, weight: float) -> torch.Tensor:
        seed_step(self.settings.seed, self.state.progress.step, self.ranks.rank)
        scale = self.ranks.world / max(weight, 1.0)  # DDP and FSDP2 average over ranks
        total = torch.zeros((), device=self.ranks.device)
        for number, micro in enumerate(batch.micro):
            last = number == len(batch.micro) - 1
            with parallel.gradient_sync(self.module, last or not self.reduces_once_per_step):
                with parallel.precision(self.settings, self.ranks.device):
                    loss = self.module(parallel.to_device(micro, self.ranks.device))
                (loss * scale).backward()
            total += loss.detach()
        return total

    def update(self, batch: Batch, loss: torch.Tensor, weight: float) -> None:
        """Clip the gradient, step the optimizer and the moving average, count. A gradient that is not finite changes no
        weight."""
        progress = self.state.progress
        with self.recorder.meter.phase("update"):
            norm = parallel.gradient_norm(self.module, self.settings.clip)
            self._step(progress.samples + self.settings.batch, norm)
            if self.state.ema is not None:
                self.state.ema.update(self.settings.batch)
        progress.step += 1
        progress.samples += self.settings.batch
        self.check_finite()
        self.unchecked = (parallel.AsyncScalar(norm), batch.keys, progress.step)
        self.recorder.add(loss, weight, batch.counts)
        self.gang.beat()

    def _step(self, done: int, norm: torch.Tensor) -> None:
        optimizer: Any = self.state.optimizer
        self.lr = self.settings.lr * learning_rate(self.settings, done, self.total)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * group["rate"]
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        constrain(self.task, self.module)

    def check_finite(self) -> None:
        """Raise Diverged if the previous step's gradient was not finite. It is checked one step late, so that nothing
        waits for the device. The norm is the same on every rank, so that all of them raise."""
        if self.unchecked is None:
            return
        later, keys, step = self.unchecked
        self.unchecked = None
        (norm,) = later.values()
        if not math.isfinite(norm):
            named = ", ".join(keys[:256]) + (f" and {len(keys) - 256} more" if len(keys) > 256 else "")
            raise Diverged(f"step {step}: the gradient is {norm}: training stops. Samples of the step: {named}")

    def record(self) -> None:
        """Collect a line of metrics.jsonl where one is due. It is written one step later."""
        self.write()
        progress = self.state.progress
        if due(progress.samples, self.settings.batch, self.settings.log_every) or self.finished:
            assert self.unchecked is not None
            self.recorder.take(
                self.unchecked[0], step=progress.step, samples=progress.samples, total=self.total, lr=self.lr,
                rejected=progress.rejected,
            )  # fmt: skip

    def write(self) -> None:
        if self.recorder.write():
            self.report_progress()

    def evaluate_if_due(self) -> None:
        """Evaluate the current weights where that is due and was not done yet; write a line of metrics.jsonl."""
        progress, every = self.state.progress, self.settings.evaluate_every
        wanted = every and (self.finished or due(progress.samples, self.settings.batch, every))
        if not wanted or progress.evaluated == progress.samples:
            return
        assert isinstance(self.task, Evaluates)
        self.check_finite()
        self.write()
        try:
            with self.recorder.meter.phase("evaluation", left_out=True):
                found = evaluate(self.task, self.state, self.settings, self.ranks, self.gang)
        except Interrupted as told:
            self.stop = told.code  # evaluated after the restart
            return
        progress.evaluated = progress.samples
        if self.metrics is not None:
            self.metrics.write(kind="evaluation", step=progress.step, samples=progress.samples, **found)
            log.info("step %d  evaluation  %s", progress.step, "  ".join(f"{k} {v}" for k, v in found.items()))
        self.report_progress()

    def save_if_due(self) -> None:
        if due(self.state.progress.samples, self.settings.batch, self.settings.save_every, default=False):
            self.save()

    def save(self) -> None:
        """Save a checkpoint; wait for it only at the end of the training."""
        ending = self.stop != 0 or self.finished
        self.check_finite()
        self.write()
        self.recorder.add_unreported()
        if ending:
            self.checkpoints.wait()
        samples = self.state.progress.samples
        if samples and self.checkpoints.last != samples:
            if self.metrics is not None:
                self.state.progress.metrics_bytes = self.metrics.bytes
            with self.recorder.meter.phase("checkpoint", host=True):
                self.checkpoints.save(self.state)
        if ending and not self.checkpoints.wait():
            log.error("the last checkpoint could not be saved; %s samples are safe", self.checkpoints.last or 0)
            self.stop = self.stop or Exit.REQUEUE
        self.report_progress()

    def report_progress(self) -> None:
        """Report to the heartbeat how far the training is, and the newest checkpoint."""
        progress = replace(self.state.progress)
        safe = self.checkpoints.last or 0
        self.gang.beat(samples=progress.samples, total=self.total, step=progress.step, checkpoint=safe)

    def export(self) -> int:
        """Write the finished model for others to load."""
        weights = self.state.weights()
        if self.ranks.rank == 0:
            target = Path(self.gang.directory) / "exports" / "final"
            self.task.export(weights, target)
            log.info("exported to %s", target)
        self.ranks.sums([0.0])
        return Exit.COMPLETE


def due(samples: int, batch: int, every: int, default: bool = True) -> bool:
    """Whether the step that just ended reached a multiple of `every` samples; `default` where `every` is 0."""
    return samples // every > (samples - batch) // every if every else default


@torch.no_grad()
def constrain(task: Task, module: torch.nn.Module) -> None:
    """Put parameters that have bounds back within them."""
    if isinstance(task, Constrains):
        task.constrain(module)


@contextmanager
def no_collection() -> Iterator[None]:
    """No automatic garbage collection inside the `with`; objects that exist already are exempt from explicit ones."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def train(task: Task, settings: TrainSettings, gang: Gang) -> int:
    """Train `task` as one rank of `gang`; return the exit code. Nothing is cleaned up: the caller ends the process."""
    training = Training(task, settings, gang)
    code = training.run()
    training.ranks.sums([0.0])  # all ranks leave together: srun kills the others once one has ended
    return int(code)
