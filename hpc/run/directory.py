"""The run directory: the only truth. Every path of it is made here.

runs/<name>/
  config.yaml                  the newest launch: python -m hpc.launch takes it as it is, wherever the run has moved
  plan/<hash>.parquet          see hpc.run.plan
  code/<digest>/               snapshot of hpc/ and recap/ that workers run
  manifests/<digest>.arrow     where a column lies that the job reads, as a launch found it, see hpc.map.survey
  submissions/<uuid>.json      intent before sbatch, then job ids; the whole resolved config
  slots/<instance>.json        heartbeat; instance = submission + slot + life, one writer each, never reused
  allocations/<launch>-<slot>.jsonl  when each life of a slot began and ended, see hpc.run.allocations
  inflight/<instance>.<engine> samples that an engine has in flight, readable after its death
  journal/<instance>.jsonl     append-only, one writer each: the fast path for status
  ledger/<identity8>/<bucket>/ claims and markers, see hpc.run.ledger
  segments/<identity8>/<bucket>/<id>.g<G>.e<k>.rows   finished parts of unfinished shards, see hpc.run.segments
  columns/<column>/<identity8>/<bucket>/<id>.g<G>.parquet    published once; readers resolve through markers
  tally/<identity8>.arrow      what hpc.status has counted: a cache, see hpc.map.tally
  tally/work.json              what hpc.status --openmetrics has counted: a cache, see hpc.map.counters
  pilot/                       what a pilot is made of, and what its rows are like: hpc.run.pilot, hpc.map.compare
  generations/<n>.json         shards reopened by a rerun, with the reason, see hpc.run.generations
  checks/<id>.json             what `hpc.launch --check` tried under Slurm, and <id>.answer.json: what came of it
  events/                      what was told outside, see hpc.run.events
  control/                     pause (with its reason), cancelled, excluded/<host>; launching, publishing: hpc.base.lock
  logs/
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from hpc import config as configs
from hpc.base import atomic, damage, object_store
from hpc.base.command_list import version
from hpc.base.errors import UserError
from hpc.base.journal import Journal
from hpc.run.generations import Generations
from hpc.run.ledger import Ledger, bucket_of


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
    by_rule: list[str] = field(default_factory=list)  # `by_rule` of its operator: reasons of rows dropped by design
    rate: float = 0.0  # samples/s of one engine in its forecast, see hpc.map.forecast; 0: it had none
    pilot: str = ""  # the pilot that it makes, see hpc.run.pilot; "": it works on the whole plan
    compared: str = ""  # the pilot that its rows are compared with, see hpc.map.compare; "": none
    webhook: bool = False  # whether it was launched with an address to be told of its end, see hpc.map.webhook
    manifests: dict[str, str] = field(default_factory=dict)  # of the columns that it reads, see hpc.map.survey
    reruns: int = 0  # how many reruns there were before it: manifests of later ones are newer than its own
    toolkit: str = field(default_factory=version)  # the version of this toolkit that wrote it

    @classmethod
    def placeholder(cls, **facts: Any) -> Submission:
        """What a dry run shows in the place of a launch: nothing of it is on disk."""
        return cls(uuid="0" * 12, created=0.0, **facts)

    @classmethod
    def read(cls, record: Any, name: str) -> Submission:
        """A submission from what its file holds. Keys that this version does not know are left out, with a warning.
        Raises ValueError that says what is wrong with a damaged one.
        """
        if not isinstance(record, dict):
            raise ValueError(f"it holds no object, but {type(record).__name__}")
        here = version()
        by = f" (written by version {record['toolkit']})" if record.get("toolkit", here) != here else ""
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        types = get_type_hints(cls)
        for key, value in known.items():
            wanted = (int, float) if types[key] is float else get_origin(types[key]) or types[key]
            if not isinstance(value, wanted):
                raise ValueError(f"`{key}` is {value!r}"[:100] + by)
        try:
            found = cls(**{"toolkit": "", **known})
        except TypeError as error:
            raise ValueError(f"{str(error).partition(' ')[2]}{by}") from error
        if found.uuid != name:
            raise ValueError(f"`uuid` is {found.uuid}")
        if lacking := _lacking(found.config):
            raise ValueError(f"`config` lacks `{lacking}`{by}")
        if more := sorted(record.keys() - known.keys()):
            damage.warn_once(
                f"submission {name} holds {', '.join(more)}, which this version does not know{by}: left out"
            )
        return found

    def checked(self, tree: dict[str, Any] | None = None) -> configs.Config:
        """Its config, checked; with `tree`, that config in its place. Raises UserError, which names the version that
        wrote it where that is another than ours.
        """
        try:
            return configs.check(tree or self.config, self.source)
        except UserError as error:
            if self.toolkit in ("", version()):
                raise
            raise UserError(f"{error} (launch {self.uuid} was written by version {self.toolkit})") from error


_SUBMISSION = re.compile(r"[0-9a-f]{12}\.json")
_AGAIN = "Launching again writes another: python -m hpc.launch with the run's config.yaml, or as before."
_LOST = f"The config, plan and jobs of this launch are not known; the other launches count. {_AGAIN}"


def _lacking(config: dict[str, Any]) -> str:
    """The first key that status needs and that a submission's config lacks, "" where it has all of them."""
    if "stage" in config:  # it holds the definition of a pipeline's stage
        return ""
    for part, name in (("cluster", "kind"), ("map", "drain_s"), ("map", "allow_failed")):
        needed = part == "cluster" or "name" in config
        if needed and (not isinstance(config.get(part), dict) or name not in config[part]):
            return f"{part}.{name}"
    return ""


class Run:
    """A run directory. Constructing one touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.plans = self.path / "plan"
        self.slots = self.path / "slots"
        self.journals = self.path / "journal"
        self.allocations = self.path / "allocations"
        self.logs = self.path / "logs"
        self.inflight = self.path / "inflight"
        self.control = self.path / "control"
        self.checks = self.path / "checks"
        self.frozen = self.path / "inputs"  # what a plan froze of its input
        self.manifests = self.path / "manifests"
        self.event_files = self.path / "events"
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
        """Where a marker's `file` is: a path, or the URL itself."""
        return file if object_store.is_url(file) else str(self.path / file)

    def segments(self, identity: str, shard_id: str, generation: int) -> Path:
        """The `folder` that `hpc.run.segments.Segments` takes."""
        return self.path / "segments" / identity / bucket_of(shard_id) / f"{shard_id}.g{generation}"

    @property
    def _needed(self) -> list[Path]:
        """Folders that slots need and never make: a slot must not bring back a run that was deleted or unmounted."""
        below = [self.path / name for name in ("ledger", "segments", "columns")]  # workers make what is in these
        return [self.slots, self.journals, self.inflight, self.control, *below]

    def missing(self) -> str:
        """The names of folders that slots cannot work without and that are not there, "" where all are."""
        return ", ".join(f"{folder.name}/" for folder in self._needed if not folder.is_dir())

    def open_journal(self, instance: str) -> Journal:
        """The journal of a slot's life that begins to work. FileNotFoundError where folders of the run are missing."""
        if missing := self.missing():
            raise FileNotFoundError(f"{missing} missing in {self.path}")
        return Journal(self.journals / f"{instance}.jsonl")

    def make(self) -> None:
        """Make the directory with its folders, where they are missing."""
        # This folder first: where a launch dies here, it tells the directory from one that is no run (`is_run`).
        self._submissions.mkdir(parents=True, exist_ok=True)
        for folder in (self.plans, self.logs, self.code, self.allocations, *self._needed):
            folder.mkdir(parents=True, exist_ok=True)
        self.generations.folder.mkdir(exist_ok=True)
        if self.code.stat().st_uid == os.geteuid():  # sticky: others of a group may add snapshots, not replace ours
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
        """One launch. FileNotFoundError where there is none; UserError where its file is damaged."""
        path = self._submissions / f"{uuid_}.json"
        try:
            return Submission.read(json.loads(path.read_bytes()), uuid_)
        except (ValueError, IsADirectoryError, PermissionError) as error:  # these stay, unlike an EIO
            raise UserError(damage.message(path, error, _LOST)) from error

    def submissions(self) -> list[Submission]:
        """All submissions whose files are whole, oldest first; warns of those that are damaged."""
        found = []
        for name in self._submission_names():
            try:
                found.append(self.submission(name))
            except FileNotFoundError:  # removed meanwhile
                continue
            except UserError as error:
                damage.warn_once(str(error))
        return sorted(found, key=lambda s: s.created)

    def damaged_submissions(self) -> list[str]:
        """Launches whose files are damaged. Their jobs carry these names as comments."""
        whole = {s.uuid for s in self.submissions()}
        return [name for name in self._submission_names() if name not in whole]

    def _submission_names(self) -> list[str]:
        try:
            names = sorted(os.listdir(self._submissions))
        except FileNotFoundError:
            return []
        return [n.removesuffix(".json") for n in names if _SUBMISSION.fullmatch(n)]

    def latest(self) -> Submission:
        """The newest submission; UserError where the directory is not a run."""
        found = self.submissions()
        if not found and (names := self._submission_names()):
            raise UserError(f"run: every submission of {self.path} is damaged ({', '.join(names[:3])}). {_AGAIN}")
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
