"""A config file: its base, its cluster profile, overrides, and the checks."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hpc.base.errors import UserError
from hpc.config import cluster_checks
from hpc.config.checked import Config, directory_of
from hpc.config.overrides import assign, with_overrides
from hpc.config.schema import RunConfig
from hpc.config.structure import check_keys, dataclass_in, names, structured, unknown_key
from hpc.config.yaml_text import parse
from hpc.operator import load_operator
from hpc.trainer import load_trainer


def load(path: str | Path, overrides: list[str]) -> Config:
    """Read, override and check a config file. Raises UserError that names the file and the key."""
    return replace(check(tree_of(path, overrides), str(path)), overrides=overrides)


def tree_of(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """The tree of a config file with its cluster's profile and `a.b=value` texts applied, not checked yet."""
    path = Path(path)
    tree = _with_run_of(path, read(path))
    profiles = [o.partition("=")[2] for o in overrides if o.startswith("cluster=")]
    tree["cluster"] = profile(profiles[-1] if profiles else tree.get("cluster", "auto"), path)
    return with_overrides(tree, [o for o in overrides if not o.startswith("cluster=")])


def _with_run_of(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """A file's tree. To the config.yaml of a run directory, `name` and `runs` are added by where it lies."""
    folder = path.absolute().parent
    if path.name == "config.yaml" and ((folder / "submissions").is_dir() or (folder / "jobs").is_dir()):
        return {"name": folder.name, "runs": str(folder.parent), **tree}
    return tree


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file, merged over that of its `base:`. above: the files whose `base` led to this one."""
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        whose = f" It is the `base` of {above[-1]}." if above else " See configs/ for examples."
        raise UserError(f"config: {path} does not exist.{whose}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {path} holds {type(tree).__name__}, expected a mapping of keys")
    if "base" not in tree:
        return tree
    base = path.parent / str(tree.pop("base"))
    if base.resolve() in {p.resolve() for p in (*above, path)}:
        raise UserError(f"config: {path}: `base`: {base} leads back to this file.")
    below = read(base, (*above, path))
    schemas = _schemas({**below, **tree})
    _check_top(below, schemas, str(base))
    for schema in schemas:  # checked alone, so that the error of a mistake in the base names the base
        check_keys(schema, {k: v for k, v in below.items() if k in names(schema) and k != "cluster"}, str(base), "")
    return merged(below, tree, schemas)


def merged(below: dict[str, Any], above: dict[str, Any], schemas: list[type]) -> dict[str, Any]:
    """The tree `below` with the values of `above` on top. Groups of keys (fields of the schemas that are dataclasses)
    are merged key by key; any other value of `above` replaces the one of `below`.
    """
    hints = {name: hint for schema in schemas for name, hint in typing.get_type_hints(schema).items()}
    out = dict(below)
    for key, value in above.items():
        group, before = dataclass_in(hints.get(key)), out.get(key)
        if group is not None and isinstance(before, dict) and isinstance(value, dict):
            out[key] = merged(before, value, [group])
        else:
            out[key] = value
    return out


def changed(config: Config, changes: dict[str, Any], source: str) -> Config:
    """A config with other values, by dotted keys (as a sweep's arm gives them)."""
    tree = copy.deepcopy(config.resolved)
    for key, value in _leaves(changes, _schemas(config.resolved)):
        assign(tree, key, value)
    return check(tree, source)


def _leaves(changes: dict[str, Any], schemas: list[type], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, groups of keys (as in `merged`) taken apart."""
    hints = {name: hint for schema in schemas for name, hint in typing.get_type_hints(schema).items()}
    for key, value in changes.items():
        first, _, rest = str(key).partition(".")
        group = dataclass_in(hints.get(first))
        inner = {rest: value} if rest else value
        if group and isinstance(inner, dict):
            yield from _leaves(inner, [group], f"{above}{first}.")
        else:
            yield f"{above}{key}", value


def check(tree: dict[str, Any], source: str) -> Config:
    """A config from a tree of plain values (a file's, or a submission's record)."""
    named = [kind for kind in _LOADERS if tree.get(kind)]
    if len(named) != 1:
        raise UserError(
            f"config: {source}: `operator`: missing. Write the dotted path of an operator class (a map job), "
            "or `trainer:` and that of a trainer class (a gang job); one of the two."
        )
    work_class = _LOADERS[named[0]](tree[named[0]])
    _check_top(tree, [RunConfig, work_class.Config], source)
    run_keys = names(RunConfig)
    run = check_run({k: v for k, v in tree.items() if k in run_keys}, source)
    work = structured(work_class.Config, {k: v for k, v in tree.items() if k not in run_keys}, source)
    resolved = {**dataclasses.asdict(run), **dataclasses.asdict(work)}
    return Config(source, run, work, work_class, resolved)


_LOADERS: dict[str, Callable[[str], Any]] = {"operator": load_operator, "trainer": load_trainer}


def _schemas(tree: dict[str, Any]) -> list[type]:
    """What a tree's keys are checked against; the work's only where it names one."""
    return [RunConfig, *(load(tree[kind]).Config for kind, load in _LOADERS.items() if tree.get(kind))]


def _check_top(tree: dict[str, Any], schemas: list[type], source: str) -> None:
    """Raise UserError for a top-level key that no schema has; where the work names no class yet, any may be right."""
    known = set().union(*map(names, schemas))
    for key in tree:
        if key not in known and len(schemas) > 1:
            raise unknown_key(source, key, key, schemas)


def check_run(tree: dict[str, Any], source: str) -> RunConfig:
    """The keys that every config has, checked."""
    run: RunConfig = structured(RunConfig, tree, source)
    _check_values(run, source)
    return run


def profile(value: Any, source: Path) -> dict[str, Any]:
    """The keys of a cluster's profile. value: its name, its file, or the keys themselves. A name is looked for near the
    config file `source` and in the current directory.
    """
    if isinstance(value, dict):
        return value
    if value == "auto":
        value = "slurm" if shutil.which("sbatch") else "local"
    name = str(value)
    candidates = [Path(name)] if name.endswith((".yaml", ".yml")) else []
    for folder in [*source.absolute().parents[:3], Path.cwd()]:
        candidates += [folder / "cluster" / f"{name}.yaml", folder / "configs" / "cluster" / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return parse(candidate.read_text(encoding="utf-8")) or {}
    if name in ("local", "slurm"):
        return {"kind": name}
    raise UserError(f"config: `cluster`: there is no profile configs/cluster/{name}.yaml. Shipped: local, slurm.")


def _check_values(run: RunConfig, source: str) -> None:
    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: {source}: `{key}`: {why}")

    # We advise letters, digits, '.', '_' and '-', and accept any directory name, since a run may have been renamed.
    if not re.fullmatch(r"[^-/\x00-\x1f][^/\x00-\x1f]*(/[^/\x00-\x1f]+)*", run.name or "") or ".." in run.name:
        refuse("name", f"{run.name!r} cannot be a directory name. Use letters, digits, '.', '_' and '-'.")
    if bad := re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", "" if "://" in run.runs else str(directory_of(run))):
        where = f"{str(directory_of(run))!r} has {bad[0]!r} in it"
        refuse("runs", f"{where}, which a batch script cannot hold. Choose another directory.")
    if run.sweep and run.operator:
        refuse("sweep", "is for trainings; this is a map job. Launch it once for each value, with another `name=`.")
    for key, why in cluster_checks.mistakes(run.cluster):
        refuse(f"cluster.{key}", why)
    if run.trainer and run.cluster.gpus_per_engine > 1:
        refuse("cluster.gpus_per_engine", "is for map jobs; each rank of a training has one GPU")
    if run.pilot < 0 or (run.pilot and run.trainer):
        refuse("pilot", "is for map jobs" if run.trainer else f"{run.pilot} is not a number of samples")
    if run.umask is not None and not re.fullmatch("0?[0-7]{3}", run.umask):
        refuse("umask", f"{run.umask!r} is not three octal digits in quotes, such as '002'")
    if run.gang.nodes < 1:
        refuse("gang.nodes", f"{run.gang.nodes} is less than 1")
    for key in ("setup_s", "hang_s"):
        if getattr(run.gang, key) <= 0:
            refuse(f"gang.{key}", f"{getattr(run.gang, key)} is not a positive number of seconds")
    if run.map.segment < 1:
        refuse("map.segment", f"{run.map.segment} is less than 1")
    if run.map.save_s < 0:
        refuse("map.save_s", f"{run.map.save_s} is not a number of seconds")
    if run.map.lease_s <= 0:
        refuse("map.lease_s", f"{run.map.lease_s} is not a positive number of seconds")
    if not 0 <= run.map.max_failed <= 1:
        refuse("map.max_failed", f"{run.map.max_failed} is not a share between 0 and 1")
