"""The run directory: the only truth. Every path of it is made here.

runs/<name>/
  config.yaml                  the newest launch: python -m hpc.launch takes it as it is, wherever the run has moved
  plan/<hash>.parquet          see hpc.plan
  code/<digest>/               snapshot of hpc/ and recap/ that workers run
  submissions/<uuid>.json      intent before sbatch, then job ids; the whole resolved config
  slots/<instance>.json        heartbeat; instance = submission + slot + life, one writer each, never reused
  inflight/<instance>.<engine> samples that an engine has in flight, readable after its death
  journal/<instance>.jsonl     append-only, one writer each: the fast path for status
  ledger/<identity8>/<bucket>/ claims and markers, see hpc.ledger
  segments/<identity8>/<bucket>/<id>.g<G>/   finished parts of unfinished shards
  columns/<column>/<identity8>/<bucket>/<id>.g<G>.parquet    published once; readers resolve through markers
  tally/<identity8>.arrow      what hpc.status has counted: a cache, see hpc.tally
  generations/<n>.json         shards reopened by a rerun, with the reason, see hpc.generations
  checks/<id>.json             what `hpc.launch --check` tried under Slurm, and <id>.answer.json: what came of it
  control/                     pause (with its reason), cancelled, excluded/<host>, launching (see hpc.alone)
  logs/
"""

from __future__ import annotations

import json
import os
import stat
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc import atomic, object_store
from hpc.errors import UserError
from hpc.generations import Generations
from hpc.ledger import Ledger, bucket_of


@dataclass
class Submission:
    """One launch: what was asked for, under which code and plan, and what became of it."""

    uuid: str
    created: float  # the launcher's clock; orders submissions, is never compared with another machine's
    plan: str
    identity: str
    column: str
    code: str
    slots: int
    config: dict[str, Any]
    source: str
    state: str = "intent"  # intent | submitted | unanswered | refused | by hand
    gate: str = ""  # job id of the gate behind the array
    job_ids: list[str] = field(default_factory=list)
    error: str = ""
    append: bool = False  # the plan holds shards that the config does not name, see hpc.launch
    overrides: list[str] = field(default_factory=list)  # of `source`, as typed
    by_rule: list[str] = field(default_factory=list)  # reasons of rows that a rule of the config drops


class Run:
    """A run directory. Constructing one touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.plans = self.path / "plan"
        self.slots = self.path / "slots"
        self.journals = self.path / "journal"
        self.logs = self.path / "logs"
        self.inflight = self.path / "inflight"
        self.control = self.path / "control"
        self.checks = self.path / "checks"
        self.code = self.path / "code"
        self.config_file = self.path / "config.yaml"
        self.generations = Generations(self.path / "generations")
        self._submissions = self.path / "submissions"

    @property
    def name(self) -> str:
        return self.path.name

    def ledger(self, identity: str) -> Ledger:
        return Ledger(self.path / "ledger" / identity)

    def column_file(self, column: str, identity: str, shard_id: str, generation: int) -> Path:
        folder = self.path / "columns" / column / identity / bucket_of(shard_id)
        return folder / f"{shard_id}.g{generation}.parquet"

    def locate(self, file: str) -> str:
        """Where the file of a marker is: a path, or the URL that the marker names."""
        return file if object_store.is_url(file) else str(self.path / file)

    def segments(self, identity: str, shard_id: str, generation: int) -> Path:
        return self.path / "segments" / identity / bucket_of(shard_id) / f"{shard_id}.g{generation}"

    def make(self) -> None:
        self._submissions.mkdir(
            parents=True, exist_ok=True
        )  # first: it tells a launch that died here from others' files
        for folder in (self.plans, self.slots, self.journals, self.logs, self.inflight, self.control, self.code):
            folder.mkdir(parents=True, exist_ok=True)
        self.generations.folder.mkdir(exist_ok=True)
        if self.code.stat().st_uid == os.geteuid():  # a group may add its snapshots, not replace another's
            self.code.chmod(self.code.stat().st_mode | stat.S_ISVTX)

    def is_run(self) -> bool:
        """Whether `make` has begun here."""
        return self._submissions.is_dir()

    # --- submissions ------------------------------------------------------------------------

    def new_submission(self, **facts: Any) -> Submission:
        submission = Submission(uuid=uuid.uuid4().hex[:12], created=time.time(), **facts)
        self.save(submission)
        return submission

    def save(self, submission: Submission) -> None:
        data = atomic.as_json(asdict(submission), indent=1)
        atomic.replace(self._submissions / f"{submission.uuid}.json", data, durable=True)

    def submission(self, uuid_: str) -> Submission:
        return Submission(**json.loads((self._submissions / f"{uuid_}.json").read_bytes()))

    def submissions(self) -> list[Submission]:
        """All submissions, oldest first."""
        try:
            names = [n for n in os.listdir(self._submissions) if n.endswith(".json") and not n.startswith(".")]
        except FileNotFoundError:
            return []
        found = [self.submission(n.removesuffix(".json")) for n in names]
        return sorted(found, key=lambda s: s.created)

    def latest(self) -> Submission:
        """The newest submission; UserError where the directory is not a run."""
        found = self.submissions()
        if not found and (self.path / "pipeline.yaml").exists():
            raise UserError(f"run: {self.path} is a pipeline. Give the path of one of its stages: {self.path}/STAGE.")
        if not found and self.is_run():
            raise UserError(f"run: nothing was launched in {self.path} yet.")
        if not found:
            raise UserError(
                f"run: {self.path} is not a run directory (no submissions/ in it). "
                "Give the path that hpc.launch printed, e.g. runs/demo."
            )
        return found[-1]

    # --- control ----------------------------------------------------------------------------

    def control_text(self, name: str) -> str | None:
        """The reason in a control file ("pause", "cancelled"), None where it does not exist."""
        try:
            return (self.control / name).read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
