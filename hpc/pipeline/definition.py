"""Pipelines: stages that need one another, in one config.

A config with `stages:` and neither operator nor trainer is a pipeline:

    name: mine
    cluster: slurm                        # stands for the cluster of every stage's config
    stages:
      world:                              # a command: no shell; ${STAGE} is the run directory of a stage
        command: [python, -m, recap.worlds.flags, "${world}/tars"]
      caption:                            # a job: a config, and what is changed in it
        config: ../caption/demo.yaml      # beside this file
        set: {data.shards: ["${world}/tars"]}
        cluster: {slots: 8}               # changes to the pipeline's cluster, for this stage
        rate: 40                          # samples/s of one GPU (engine or rank without GPUs), for --dry-run

Stages that are made for each of some names, such as captioners: hpc.pipeline.for_each.

A stage needs the stages that it names in `${...}`, and those of its `needs:`. runs/<name>/<stage>/ is an ordinary run
directory of a job; of a command it holds stdout.txt, stderr.txt and what the command writes there (what an earlier
attempt has left is moved to <stage>.1, <stage>.2, ...). On the command line `STAGE.key=value` changes a stage, and
`name=`, `runs=` and `cluster=` change the pipeline.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.base.fields import execution
from hpc.config import Config
from hpc.pipeline.for_each import expanded

_OWN = ("name", "runs", "cluster", "for_each", "stages")  # keys of the pipeline itself
_FOLDERS = ("configs", "jobs", "journal", "code", "logs", "control")  # in its directory, see hpc.pipeline.directory
# Keys of the cluster that a command does not take over from the pipeline.
_SIZES = ("slots", "parallel", "gpus_per_node", "engines_per_node", "cpus_per_node", "mem_gb", "gres", "time")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass
class StageConfig:
    """The keys of a stage."""

    needs: list[str] = execution([], "stages that come before, beside those that ${...} names")
    config: str = execution("", "the job's config file, relative to the pipeline's")
    set: dict[str, Any] = execution({}, "changes to that config, by dotted keys")
    command: list[str] = execution([], "instead of a config: a program and its arguments")
    cluster: dict[str, Any] = execution({}, "changes to the pipeline's cluster; all that a command gets beyond one CPU")
    rate: float | None = execution(None, "samples/s of one GPU (without GPUs: of an engine or rank), for --dry-run")
    samples: int | None = execution(None, "samples that the stage works on, for --dry-run, where its input cannot say")


@dataclass
class PipelineConfig:
    """The keys of a pipeline."""

    name: str = execution(MISSING, "name of the pipeline: its directory is <runs>/<name>")
    runs: str = execution("runs", "directory that holds run directories; must be POSIX and shared by all nodes")
    cluster: dict[str, Any] = execution({}, "cluster profile of all stages")
    for_each: dict[str, Any] = execution(
        {}, "what stages with % in their name are made for: a directory, or a stage, by name; null takes one away"
    )
    stages: dict[str, Any] = execution({}, "stages by name")


@dataclass(frozen=True)
class Stage:
    """A checked stage, which has either a `command` or a `config`. tree: the keys that the config was checked from."""

    name: str
    needs: tuple[str, ...]
    cluster: configs.ClusterConfig
    command: tuple[str, ...] = ()
    config: Config | None = None
    tree: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    rate: float | None = None
    samples: int | None = None

    @property
    def kind(self) -> str:
        """command | map | gang | sweep"""
        if self.config is None:
            return "command"
        if not self.config.is_gang:
            return "map"
        return "sweep" if self.config.run.sweep else "gang"

    @property
    def digest(self) -> str:
        """A hash (12 hex digits) of what the stage does. Where it runs does not enter it."""
        made: Any = list(self.command)
        if self.config is not None:
            run = self.config.run
            work = {k: v for k, v in self.config.resolved.items() if not hasattr(run, k)}
            made = [run.operator, run.trainer, run.sweep, work]
        return hashlib.sha256(json.dumps(made, sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def what(self) -> str:
        """What it runs, in one short line."""
        said = f"{self.kind}: {self.source}" if self.config is not None else " ".join(self.command)
        return textwrap.shorten(said, 100, placeholder=" …")

    def record(self) -> dict[str, Any]:
        """What is recorded of it, and what its stage job has to know."""
        return {"stage": self.name, "needs": list(self.needs), "command": list(self.command), "digest": self.digest}


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; its stages in an order in which they can run."""

    name: str
    directory: Path
    source: str
    cluster: configs.ClusterConfig
    stages: dict[str, Stage]
    tree: dict[str, Any]  # a config that makes this pipeline again, beside configs/<stage>.yaml
    overrides: list[str]  # as typed

    def stage(self, name: str) -> Stage:
        if name not in self.stages:
            raise UserError(f"pipeline: there is no stage {name!r}.{_nearest(name, self.stages)}")
        return self.stages[name]

    def dependents(self, name: str) -> list[str]:
        """The stages that need this one, directly or not."""
        found = {name}
        for stage in self.stages.values():
            if found & set(stage.needs):
                found.add(stage.name)
        return [stage for stage in self.stages if stage in found - {name}]


@dataclass(frozen=True)
class PipelineRequest:
    """What a launch asks of a pipeline, by the flags of `hpc.launch`."""

    supersede: bool = False
    only: str = ""
    from_stage: str = ""  # --from


def is_pipeline(path: str | Path) -> bool:
    """Whether a config file is a pipeline's. Raises UserError where it cannot be read."""
    tree = configs.read(Path(path))
    return "stages" in tree and not tree.get("operator") and not tree.get("trainer")


def load(path: str | Path, overrides: list[str]) -> Pipeline:
    """Read, override and check a pipeline with all its stages. Raises UserError that names file, stage and key."""
    source = str(path)
    own = [o for o in overrides if re.split(r"[.=]", o)[0] in _OWN]
    top: PipelineConfig = configs.structured(PipelineConfig, configs.tree_of(path, own), source)
    run = configs.check_run({"name": top.name, "runs": top.runs, "cluster": top.cluster}, source)
    directory = Path(run.runs).expanduser().absolute() / run.name
    trees, patterns = expanded(top.stages, top.for_each, source)
    _check_names(trees, source)
    stages: dict[str, StageConfig] = {
        name: configs.structured(StageConfig, tree or {}, f"{source}: stage {name}") for name, tree in trees.items()
    }
    for key, value in configs.parsed([o for o in overrides if o not in own]).items():
        _override(stages, patterns, key, value)
    needs = {name: _needs(name, stage, stages, source) for name, stage in stages.items()}
    folders = {name: str(directory / name) for name in stages}
    made = {}
    for name in _ordered(needs, source):
        where = f"{source}: stage {name}"
        try:
            made[name] = _checked(name, stages[name], needs[name], top, Path(path), folders)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    tree = {"cluster": top.cluster, "stages": {name: _again(name, stage) for name, stage in stages.items()}}
    return Pipeline(run.name, directory, source, run.cluster, made, tree, overrides)


def _again(name: str, stage: StageConfig) -> dict[str, Any]:
    """The keys of a stage, with the job's config that the pipeline's directory keeps in place of the original."""
    keys = {key: value for key, value in vars(stage).items() if value}
    return {**keys, "config": f"configs/{name}.yaml"} if stage.config else keys


def _check_names(stages: dict[str, Any], source: str) -> None:
    if not stages:
        raise UserError(f"config: {source}: `stages`: empty. Name at least one.")
    for name, tree in stages.items():
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in (*_OWN, *_FOLDERS):
            raise UserError(
                f"config: {source}: `stages.{name}`: cannot be a stage's name. Use letters, digits, '_' and '-'; "
                f"{', '.join((*_OWN, *_FOLDERS))} are taken."
            )
        if not isinstance(tree, dict | None):
            raise UserError(f"config: {source}: `stages.{name}`: {tree!r} is not a group of keys")


def _override(stages: dict[str, StageConfig], patterns: dict[str, str], key: str, value: Any) -> None:
    """Apply `STAGE.key=value` to the stage's cluster, own keys or `set`. A pattern stands for all stages made of it."""
    name, _, rest = key.partition(".")
    if rest and name in patterns.values():
        for stage in (stage for stage, pattern in patterns.items() if pattern == name):
            _override(stages, {}, f"{stage}.{rest}", value)
        return
    if name not in stages or not rest:
        near = _nearest(name, [*stages, *_OWN])
        raise UserError(f"config: `{key}`: neither a key of the pipeline nor STAGE.key.{near}")
    if rest.startswith("cluster."):
        configs.assign({"cluster": stages[name].cluster}, rest, value)
    elif rest in ("rate", "samples"):
        setattr(stages[name], rest, value)
    elif rest == "command" and stages[name].command:
        if not isinstance(value, list) or not value:
            raise UserError(f"config: `{key}`: {value!r} is no list of a program and its arguments: [python, -m, ...]")
        stages[name].command = [str(part) for part in value]
    else:
        stages[name].set[rest] = value


def _needs(name: str, stage: StageConfig, stages: dict[str, StageConfig], source: str) -> tuple[str, ...]:
    """The stages that a stage needs, those of `needs:` and those in `${...}`, in the order of the file."""
    for need in stage.needs:
        if need not in stages or need == name:
            known = [s for s in stages if s != name]
            raise UserError(
                f"config: {source}: stage {name}: `needs`: {need!r} is no other stage.{_nearest(need, known)}"
            )
    for reference in _references([stage.set, stage.command]):
        if reference not in stages:
            raise UserError(
                f"config: {source}: stage {name}: ${{{reference}}} is no stage.{_nearest(reference, stages)}"
            )
    wanted = {*stage.needs, *_references([stage.set, stage.command])} - {name}
    return tuple(other for other in stages if other in wanted)


def _references(value: Any) -> Iterator[str]:
    """The names in `${...}` anywhere in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _references(part)
    elif isinstance(value, str):
        yield from _REFERENCE.findall(value)


def _resolved(value: Any, folders: dict[str, str]) -> Any:
    """The value with directories in place of ${STAGE}."""
    if isinstance(value, dict):
        return {k: _resolved(v, folders) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, folders) for v in value]
    return _REFERENCE.sub(lambda match: folders[match[1]], value) if isinstance(value, str) else value


def _ordered(needs: dict[str, tuple[str, ...]], source: str) -> list[str]:
    """Stages so that each comes after those it needs, else as in the file."""
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and set(needs[name]) <= set(order)]
        if not ready:
            left = [name for name in needs if name not in order]
            raise UserError(f"config: {source}: `needs`: {' and '.join(left)} wait for one another.")
        order.append(ready[0])
    return order


def _checked(
    name: str, stage: StageConfig, needs: tuple[str, ...], top: PipelineConfig, path: Path, folders: dict[str, str]
) -> Stage:
    """A stage, checked. Raises UserError that does not name the stage: the caller adds that."""
    if bool(stage.config) == bool(stage.command):
        raise UserError("write either `config` (a job) or `command` (a program and its arguments)")
    source = f"stage {name}"
    if stage.command:
        if stage.set:
            raise UserError(f"`{next(iter(stage.set))}`: a command has no config to change. Change `command`.")
        shared = {k: v for k, v in top.cluster.items() if k not in _SIZES}  # a node full of GPUs is not for a report
        cluster = _cluster(shared, stage)
        run = configs.check_run({"name": name, "cluster": cluster}, source)
        command = tuple(_resolved(stage.command, folders))
        return Stage(name, needs, run.cluster, command, rate=stage.rate, samples=stage.samples)
    file = Path(os.path.normpath(path.parent / stage.config))
    tree = configs.read(file)
    for key, value in stage.set.items():
        if key.partition(".")[0] in ("name", "runs", "cluster"):
            raise UserError(f"`set`: `{key}` is the pipeline's to say; `cluster` has its own place in a stage")
        configs.assign(tree, key, _resolved(value, folders))
    runs = str(Path(top.runs).expanduser().absolute())
    tree |= {"name": f"{top.name}/{name}", "runs": runs, "cluster": _cluster(top.cluster, stage)}
    config = configs.check(tree, str(file))
    if config.run.pilot:
        raise UserError("`pilot`: later stages need all of this one. Launch its config by itself for a pilot")
    about: dict[str, Any] = {"rate": stage.rate, "samples": stage.samples}
    return Stage(name, needs, config.run.cluster, config=config, tree=tree, source=str(file), **about)


def _cluster(shared: dict[str, Any], stage: StageConfig) -> dict[str, Any]:
    """The pipeline's cluster with the stage's changes. Dependencies and the gate are the pipeline's alone to set."""
    if taken := [key for key in ("kind", "gate", "dependency") if key in stage.cluster]:
        raise UserError(f"`cluster.{taken[0]}`: belongs to the pipeline, not to one of its stages")
    return {**{k: v for k, v in shared.items() if k not in ("gate", "dependency")}, **stage.cluster}


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]}?" if nearest else f" Known: {', '.join(known)}."
