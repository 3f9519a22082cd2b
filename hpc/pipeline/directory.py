"""The directory of a pipeline: the attempts at each stage, and which stages are finished.

runs/<name>/
  config.yaml            the newest launch: python -m hpc.launch takes it as it is
  pipeline.yaml          what it came to: stages, needs, commands
  configs/<stage>.yaml   a job's whole config: python -m hpc.launch takes it, too
  jobs/<uuid>.json       one a stage and attempt: intent before sbatch, then the stage job's id (a Submission)
  journal/<uuid>.jsonl   what that attempt did: start, launch, end
  <stage>/               a job's run directory; of a command stdout.txt and stderr.txt
  <stage>/stage.json     the stage is finished: of which definition, from which inputs, and what came of it
  code/ logs/ control/   as in any run
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hpc.base import atomic, damage
from hpc.base.errors import UserError
from hpc.base.journal import read
from hpc.pipeline.definition import Pipeline, Stage
from hpc.run.directory import Run, Submission
from hpc.slurm import container


class PipelineRun(Run):
    """The run directory of a whole pipeline; its submissions are stage jobs."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._submissions = self.path / "jobs"
        self.configs = self.path / "configs"
        self.record = self.path / "pipeline.yaml"

    def make(self) -> None:
        for folder in (self._submissions, self.configs, self.journals, self.code, self.logs, self.control):
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def at(cls, path: str | Path) -> PipelineRun | None:
        """The pipeline of a directory, None where it holds none."""
        run = cls(path)
        return run if run.record.exists() else None

    def check(self) -> None:
        """Raise UserError where the directory exists and is not a pipeline's."""
        if self.path.exists() and any(self.path.iterdir()) and not self._submissions.is_dir():
            raise UserError(f"launch: {self.path} exists and is not a pipeline's directory. Choose another `name=`.")

    def launched(self) -> dict[str, Any]:
        """What pipeline.yaml holds. UserError where it is damaged."""
        try:
            found = yaml.safe_load(self.record.read_bytes())
            if isinstance(found, dict):  # earlier versions did not write these
                found = {"overrides": [], "directory": str(self.path), **found}
            if why := _wrong(found):
                raise ValueError(why)
        except (ValueError, yaml.YAMLError) as error:
            lost = (
                "What the stages are is not known; their own directories stay. Launching again writes it anew: "
                f"python -m hpc.launch {self.config_file}, or as before."
            )
            raise UserError(damage.message(self.record, str(error).splitlines()[0], lost)) from error
        return found

    # --- attempts -----------------------------------------------------------------------------

    def submission(self, uuid_: str) -> Submission:
        found = super().submission(uuid_)
        if wrong := _wrong_stage(found.config):
            lost = "This attempt at a stage does not count. Launching the pipeline again makes another."
            raise UserError(damage.message(self._submissions / f"{uuid_}.json", f"`config`: {wrong}", lost))
        return found

    def attempts(self, stage: str) -> list[Submission]:
        """Submissions of a stage, oldest first."""
        return [s for s in self.submissions() if s.config["stage"] == stage]

    def journal(self, submission: Submission) -> Path:
        return self.journals / f"{submission.uuid}.jsonl"

    def events(self, submission: Submission) -> list[dict[str, Any]]:
        return read(self.journal(submission))[0]

    def at_work(self, stage: str) -> bool:
        """Whether a process of this machine works at a stage now."""
        events = [e for s in self.attempts(stage)[-1:] for e in self.events(s)]
        begun = [e for e in events if e["event"] == "start"][-1:]
        if not begun or events[-1]["event"] == "end" or begun[0]["host"] != socket.gethostname():
            return False
        try:
            return b"hpc." in Path(f"/proc/{begun[0]['pid']}/cmdline").read_bytes()
        except OSError:
            return False

    def seconds(self, stage: str, now: float | None = None) -> float:
        """Seconds of all attempts since the stage was last finished; one that has not ended counts up to `now`."""
        total, over = 0.0, False
        for events in filter(None, map(self.events, self.attempts(stage))):
            last = events[-1]
            ended = last["event"] == "end"
            until = last["t"] if ended or now is None else now
            total, over = (0.0 if over else total) + until - events[0]["t"], ended and last["code"] == 0
        return max(0.0, total)

    # --- finished stages ----------------------------------------------------------------------

    def marker(self, stage: str) -> dict[str, Any]:
        """What stands in a stage's stage.json, {} where it is not finished."""
        try:
            found = dict(json.loads((self.path / stage / "stage.json").read_bytes()))
            if not isinstance(found.get("seconds"), int | float):
                raise ValueError("it has no `seconds`")
            return found
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            lost = f"Stage {stage} counts as not finished: launching again does it again."
            damage.warn_once(damage.message(self.path / stage / "stage.json", error, lost))
            return {}

    def finish(self, record: dict[str, Any], seconds: float) -> None:
        """Mark a stage as finished, with the outcomes of its needs. record: `Stage.record`."""
        folder = self.path / record["stage"]
        marker = {
            "definition": record["digest"], "needs": self.inputs(record),
            "outcome": _token(time.time()) if record["command"] else outcome(Run(folder)), "seconds": round(seconds, 1),
        }  # fmt: skip
        atomic.replace(folder / "stage.json", atomic.as_json(marker, indent=1), durable=True)

    def forget(self, stages: Iterable[str]) -> None:
        """Make stages count as not finished."""
        for stage in stages:
            (self.path / stage / "stage.json").unlink(missing_ok=True)

    def inputs(self, record: dict[str, Any]) -> dict[str, str]:
        """The outcome of each need of a stage, "" of one that is not finished."""
        return {need: str(self.marker(need).get("outcome", "")) for need in record["needs"]}

    def is_finished(self, record: dict[str, Any]) -> bool:
        """Whether a stage was finished with its present definition and the present outcomes of its needs, and its job's
        output has not changed since.
        """
        marker = self.marker(record["stage"])
        same = marker.get("definition") == record["digest"] and marker.get("needs") == self.inputs(record)
        return same and (bool(record["command"]) or marker.get("outcome") == outcome(Run(self.path / record["stage"])))

    def finished(self, pipeline: Pipeline) -> list[str]:
        """The stages that are finished together with all of their needs."""
        found: list[str] = []
        for stage in pipeline.stages.values():
            if set(stage.needs) <= set(found) and self.is_finished(stage.record()):
                found.append(stage.name)
        return found


def _wrong(record: Any) -> str:
    """What is wrong with the content of a pipeline.yaml, "" where nothing is."""
    if not isinstance(record, dict):
        return "it holds no keys"
    kinds = {"source": str, "cluster": str, "overrides": list, "directory": str, "stages": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"`{key}` is {record.get(key)!r}"[:100]
    before: list[str] = []
    for name, stage in record["stages"].items():
        if why := _wrong_stage(stage):
            return f"stage {name!r}: {why}"
        if stage["stage"] != name or not set(stage["needs"]) <= set(before) or not isinstance(stage.get("kind"), str):
            return f"stage {name!r} is not itself, or needs stages that do not come before it"
        before.append(name)
    return "" if all(isinstance(word, str) for word in record["overrides"]) else "`overrides` are not texts"


def _wrong_stage(record: Any) -> str:
    """What is wrong with the record of a stage (`Stage.record`), "" where nothing is."""
    if not isinstance(record, dict):
        return "it holds no keys"
    for key, kind in (("stage", str), ("needs", list), ("command", list), ("digest", str)):
        if not isinstance(record.get(key), kind):
            return f"`{key}` is {record.get(key)!r}"[:100]
    return "" if all(isinstance(need, str) for need in record["needs"]) else "`needs` are not names"


def outcome(run: Run) -> str:
    """A hash that changes when the output of a job may have changed: by another identity or plan, by a rerun, or where
    its directory was made anew. "" where it was never launched.
    """
    submissions = run.submissions()
    if not submissions:
        return ""
    first, latest = submissions[0], submissions[-1]
    arms = [outcome(Run(run.path / arm)) for arm in latest.config.get("sweep") or {}]
    return _token([first.uuid, latest.identity, latest.plan, run.generations.count(), arms])


def _token(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def stage_facts(pipeline: Pipeline, stage: Stage, run: PipelineRun, code: str, supersede: bool) -> dict[str, Any]:
    """The fields of a stage job's submission. code: name of the snapshot."""
    argv = container.command(stage.cluster, run.path, stage.command) if stage.command else []
    config = {**stage.record(), "argv": argv, "cwd": os.getcwd(), "supersede": supersede}
    config["cluster"] = {"kind": pipeline.cluster.kind}
    return {
        "plan": "", "column": "", "identity": stage.digest, "code": code, "slots": 1, "config": config,
        "source": pipeline.source,
    }  # fmt: skip
