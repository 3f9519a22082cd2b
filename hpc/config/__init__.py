"""Configs: YAML + `key=value` overrides, checked against dataclasses, so that a typing mistake is an error with a hint.

A config file has the keys of `RunConfig` (below) and of its work's `Config`. It names either an `operator:` (a map job:
slots that claim shards) or a `trainer:` (a gang job: ranks that train together). `cluster:` names a profile
(`configs/cluster/<name>.yaml`) or is a mapping; `cluster=NAME cluster.time=1:00:00` on the command line picks and
changes one; `data.0.path=…` changes an entry of a list that the file has. `base: FILE` takes over another config,
relative to the file: groups of keys are merged, all other values (lists, and mappings with names of one's own, such as
`text.weights`) replace the base's.

Fields are *semantic* (they make the output, and enter its identity) unless their metadata says {"execution": True}.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc.base.errors import UserError
from hpc.config import cluster_checks
from hpc.operator import Operator, load_operator
from hpc.trainer import Trainer, load_trainer


def setting(default: Any, help: str) -> Any:
    """A dataclass field of the execution kind, with the text that errors and --help show."""
    metadata = {"help": help, "execution": True}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ContainerConfig:
    """Workers inside a container, see hpc.slurm.container."""

    runtime: str = setting("apptainer", "apptainer | pyxis (srun's --container-image, with enroot)")
    image: str = setting("", "the image: a .sif, or what pyxis takes, e.g. nvcr.io#nvidia/pytorch:25.10-py3")
    mounts: list[str] = setting([], "paths to mount beside the run directory: /data, or /scratch/data:/data")
    args: list[str] = setting([], "further arguments of `apptainer exec`, or pyxis' own arguments of srun")


@dataclass
class ClusterConfig:
    """Where and how jobs run. Nothing here changes what is written."""

    kind: str = setting("local", "local | slurm | auto (slurm where sbatch is on PATH, else local)")
    slots: int = setting(1, "node slots: elements of the job array (slurm) or worker processes (local)")
    parallel: int | None = setting(None, "slots that may run at the same time (slurm; default: all)")
    gpus_per_node: int = setting(0, "GPUs a node; one engine process each. 0: engines run on the CPU")
    engines_per_node: int = setting(1, "engine processes a node where gpus_per_node is 0")
    device: str | None = setting(None, "cpu | cuda (default: cuda where gpus_per_node is set)")
    cpus_per_node: int | None = setting(None, "CPUs a slot asks for (slurm)")
    mem_gb: float | None = setting(None, "memory a slot asks for, GB (slurm)")
    time: str = setting("24:00:00", "time limit of one life of a slot, as Slurm writes it; slots are requeued")
    signal_delay_s: int = setting(300, "seconds before the time limit at which Slurm sends USR2 (drain)")
    partition: str | None = setting(None, "Slurm partition")
    account: str | None = setting(None, "Slurm account")
    qos: str | None = setting(None, "Slurm quality of service")
    constraint: str | None = setting(None, "Slurm node feature")
    exclude: str | None = setting(None, "nodes not to use")
    nodelist: str | None = setting(None, "nodes to use")
    dependency: str | None = setting(None, "Slurm dependency of the submission, e.g. afterok:1234")
    gate: bool = setting(False, "submit a gate job behind the array (slurm): later jobs depend on it, see hpc.gate")
    gres: str | None = setting(None, "generic resources instead of gpus_per_node's, e.g. gpu:h100:8")
    prelude: list[str] = setting([], "shell lines before srun, or @file with such lines. Must not trap TERM")
    python: str | None = setting(None, "python on the nodes (default: this one; inside a container: python3)")
    container: ContainerConfig | None = setting(None, "run the workers in a container: {runtime, image, mounts, args}")
    srun_args: list[str] = setting([], "further arguments of srun, e.g. [--container-image=..., --cpu-bind=none]")
    sbatch: dict[str, Any] = setting({}, "further sbatch parameters, e.g. {reservation: weekly}")
    price: float | None = setting(None, "cost of a GPU hour (without GPUs: of an engine hour), for status and forecast")
    currency: str = setting("$", "what `price` is in")


@dataclass
class MapConfig:
    """How an elastic map job claims, checks and retries shards."""

    lease_s: float = setting(300.0, "seconds without a heartbeat after which a slot's claims may be taken over")
    segment: int = setting(512, "samples that are saved together inside an unfinished shard: a block")
    save_s: float = setting(30.0, "seconds between saves of an unfinished shard's finished blocks: what a kill costs")
    max_failed: float = setting(0.05, "share of a shard's samples that may fail before the shard fails")
    allow_failed: int = setting(0, "failed shards with which a gate job still ends well")
    attempts: int = setting(3, "application failures of a shard before it is marked failed")
    breaker: int = setting(8, "shards of a slot that fail alike, before any succeeds, to pause the run. 0: never")
    min_free_gb: float = setting(1.0, "free space on the run directory's file system under which no slot starts, GB")
    setup_s: float = setting(1800.0, "seconds that an engine may take to load its model")
    hang_s: float = setting(600.0, "seconds without a finished sample after which an engine is killed")
    away_s: float = setting(1800.0, "seconds that a service may be away (a caption server) before a slot is requeued")
    drain_s: float = setting(60.0, "seconds that engines get to finish what is in flight when told to stop")
    idle_exit_s: float = setting(600.0, "seconds without a claimable shard after which a slot ends (others still work)")


@dataclass
class GangConfig:
    """How many nodes a gang job takes, and when one of its ranks counts as hung."""

    nodes: int = setting(1, "nodes; each has one rank per GPU, or cluster.engines_per_node CPU ranks")
    setup_s: float = setting(3600.0, "seconds that a rank may take until its first step")
    hang_s: float = setting(1800.0, "seconds without a step after which the ranks print their stacks and end")


@dataclass
class RunConfig:
    """The keys of every config, beside its operator's or trainer's own."""

    name: str = setting(MISSING, "name of the run: its directory is <runs>/<name>")
    operator: str = field(
        default="", metadata={"help": "dotted path of the operator class (a map job), installed or on PYTHONPATH"}
    )
    trainer: str = field(
        default="", metadata={"help": "dotted path of the trainer class (a gang job), installed or on PYTHONPATH"}
    )
    umask: str | None = setting(
        None, "umask of all files of the run, octal, e.g. '002' for a group's run (default: ours)"
    )
    output: str | None = setting(None, "object store for published files, e.g. s3://bucket/prefix (default: the run)")
    sweep: dict[str, Any] = setting({}, "several trainings of one kind (gang): arm's name -> changes to this config")
    runs: str = setting("runs", "directory that holds run directories; must be POSIX and shared by all nodes")
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata={"execution": True})
    map: MapConfig = field(default_factory=MapConfig, metadata={"execution": True})
    gang: GangConfig = field(default_factory=GangConfig, metadata={"execution": True})


@dataclass
class Config:
    """A checked config. `resolved` holds every key with its value, as written into submissions."""

    source: str
    run: RunConfig
    work: Any
    work_class: Any  # an Operator's or a Trainer's
    resolved: dict[str, Any]
    overrides: list[str] = field(default_factory=list)  # as typed

    @property
    def directory(self) -> Path:
        return _directory(self.run)

    @property
    def is_gang(self) -> bool:
        return bool(self.run.trainer)

    def operator(self) -> Operator:
        """A map job's operator."""
        return self.work_class(self.work)

    def trainer(self) -> Trainer:
        """A gang job's trainer."""
        return self.work_class(self.work)

    def apply_umask(self) -> None:
        """Make this process' files as readable as the run wants them; children inherit it."""
        if self.run.umask is not None:
            os.umask(int(self.run.umask, 8))

    def semantic(self) -> dict[str, Any]:
        """The part that makes the output, without fields at their default."""
        kind = "trainer" if self.is_gang else "operator"
        return {kind: getattr(self.run, kind), **_semantic(self.work)}


def identity(config: Config, work: Operator | Trainer, version: int | None = None) -> str:
    """Hash (8 hex digits) of what makes the output; equal for equal output, whatever the machine or the path.

    Fields at their default are left out, so that a field that is added later changes no hash. version: the work's own.
    """
    version = type(work).version if version is None else version
    content = {"config": config.semantic(), "version": version, "made_with": work.identity()}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


# --- loading ------------------------------------------------------------------------------------


def load(path: str | Path, overrides: list[str]) -> Config:
    """Read, override and check a config file. Raises UserError that names the file and the key."""
    return replace(check(tree_of(path, overrides), str(path)), overrides=overrides)


def tree_of(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """The tree of a config file with its cluster's profile and `a.b=value` texts applied, not checked yet."""
    path = Path(path)
    tree = _placed(path, read(path))
    profiles = [o.partition("=")[2] for o in overrides if o.startswith("cluster=")]
    tree["cluster"] = _cluster(profiles[-1] if profiles else tree.get("cluster", "auto"), path)
    return with_overrides(tree, [o for o in overrides if not o.startswith("cluster=")])


def _placed(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """The config that a run directory keeps means the run in which it lies."""
    folder = path.absolute().parent
    if path.name == "config.yaml" and ((folder / "submissions").is_dir() or (folder / "jobs").is_dir()):
        return {"name": folder.name, "runs": str(folder.parent), **tree}
    return tree


def dump(tree: dict[str, Any]) -> str:
    """YAML text from which `read` makes the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tree, over that of its `base:`. above: the files that led here."""
    try:
        tree = _yaml(path.read_text(encoding="utf-8"))
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
    for schema in schemas:  # so that a mistake in the base is told of the base
        _check_keys(schema, {k: v for k, v in below.items() if k in _names(schema) and k != "cluster"}, str(base), "")
    return merged(below, tree, schemas)


def merged(below: dict[str, Any], above: dict[str, Any], schemas: list[type]) -> dict[str, Any]:
    """A tree with another's values on top: groups of keys (the schemas' dataclasses) key by key, all else whole."""
    hints = {name: hint for schema in schemas for name, hint in typing.get_type_hints(schema).items()}
    out = dict(below)
    for key, value in above.items():
        group, before = _dataclass_in(hints.get(key)), out.get(key)
        both = group and isinstance(before, dict) and isinstance(value, dict)
        out[key] = merged(before, value, [group]) if both else value  # type: ignore[arg-type, list-item]
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
        group = _dataclass_in(hints.get(first))
        inner = {rest: value} if rest else value
        if group and isinstance(inner, dict):
            yield from _leaves(inner, [group], f"{above}{first}.")
        else:
            yield f"{above}{key}", value


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of a config's tree with `a.b=value` texts applied."""
    tree = copy.deepcopy(tree)
    for key, value in parsed(overrides).items():
        assign(tree, key, value)
    return tree


def parsed(overrides: list[str]) -> dict[str, Any]:
    """Values of `a.b=value` texts by their dotted keys."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key in found:
            raise UserError(f"config: `{key}`: given twice. If the shell expanded braces, put the argument in quotes.")
        if not equals or not key:
            raise UserError(f"config: `{override}`: expected key=value, e.g. captioner.max_tokens=64")
        found[key] = _parse_value(value)
    return found


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
    run_keys = _names(RunConfig)
    run = check_run({k: v for k, v in tree.items() if k in run_keys}, source)
    work = structured(work_class.Config, {k: v for k, v in tree.items() if k not in run_keys}, source)
    resolved = {**dataclasses.asdict(run), **dataclasses.asdict(work)}
    return Config(source, run, work, work_class, resolved)


_LOADERS: dict[str, Callable[[str], Any]] = {"operator": load_operator, "trainer": load_trainer}


def _schemas(tree: dict[str, Any]) -> list[type]:
    """What a tree's keys are checked against; the work's only where it names one."""
    return [RunConfig, *(load(tree[kind]).Config for kind, load in _LOADERS.items() if tree.get(kind))]


def _names(schema: type) -> set[str]:
    return {f.name for f in dataclasses.fields(schema)}


def _check_top(tree: dict[str, Any], schemas: list[type], source: str) -> None:
    known = set().union(*map(_names, schemas))
    for key in tree:
        if key not in known and len(schemas) > 1:
            raise _unknown(source, key, key, schemas)


def check_run(tree: dict[str, Any], source: str) -> RunConfig:
    """The keys that every config has, checked."""
    run: RunConfig = structured(RunConfig, tree, source)
    _check_values(run, source)
    return run


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 24:00:00 as the number 86400 (base 60) and 1e-3 as text; here they are a time and a number.
    A key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"`{twice}` is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = dict(yaml.SafeLoader.yaml_implicit_resolvers)
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first] = [
        ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$")),
        ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")),
    ]


class _Dumper(yaml.SafeDumper):
    """Quotes what our loader would take for a number."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _cluster(value: Any, source: Path) -> dict[str, Any]:
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
            return _yaml(candidate.read_text(encoding="utf-8")) or {}
    if name in ("local", "slurm"):
        return {"kind": name}
    raise UserError(f"config: `cluster`: there is no profile configs/cluster/{name}.yaml. Shipped: local, slurm.")


def _parse_value(text: str) -> Any:
    """A command-line value, read as YAML where it is YAML; {0..9}.tar and @file stay text, in lists too."""
    if ".." in text or re.match(r"\[?\s*@|\[.*,\s*@", text):
        if text.startswith("[") and text.endswith("]"):
            return [part.strip() for part in re.split(r",(?![^{]*\})", text[1:-1])]
        return text
    try:
        return _yaml(text)
    except yaml.YAMLError:
        return text


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b` of a tree, in place; a number leads into a list: `data.0.path`."""
    *groups, last = dotted.split(".")
    place: Any = tree
    for depth, key in enumerate(groups):
        at: Any = _index(place, key, dotted) if isinstance(place, list) else key
        if not isinstance(place, list) and place.get(key) is None:  # not there, or `key: null`
            place[key] = {}
        place = place[at]
        if not isinstance(place, dict | list):
            raise UserError(f"config: `{dotted}`: `{'.'.join(groups[: depth + 1])}` is not a group of keys")
    place[_index(place, last, dotted) if isinstance(place, list) else last] = value


def _index(place: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        known = f"0 to {len(place) - 1}" if place else "it is empty"
        raise UserError(f"config: `{dotted}`: {key!r} is not the number of an entry of this list ({known})")
    return int(key)


def structured(schema: type, values: dict[str, Any], source: str) -> Any:
    """A dataclass of this schema from plain values. Raises UserError with a hint for a key that it does not know."""
    _check_keys(schema, values, source, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(_settled(values, source, "")))
        made = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
        raise UserError(f"config: {source}: `{key}`: {str(error.msg or error).splitlines()[0]}") from error
    return made


def _settled(value: Any, source: str, key: str) -> Any:
    """Values as OmegaConf takes them over unchanged: for us `${...}` is text, however it is escaped, so that no
    resolver reads our environment. `2.56e9` may stand where a count is wanted; `???` is for people to fill in.
    """
    if isinstance(value, dict):
        return {k: _settled(v, source, f"{key}.{k}".strip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_settled(v, source, f"{key}.{number}") for number, v in enumerate(value)]
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        return int(value)
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\\*\?{3}", value):
        raise UserError(f"config: {source}: `{key}`: ??? stands for a value that is still to be written. Write it.")
    # every backslash before it doubled, then one that escapes it
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)


def _check_keys(schema: type, values: dict[str, Any], source: str, prefix: str) -> None:
    """Raise UserError for a key that is unknown, in groups in lists and mappings too, or is no such container."""
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        whole = f"{prefix}{key}"
        if key not in hints:
            raise _unknown(source, whole, str(key), [schema], prefix)
        inner, (container, element) = _dataclass_in(hints[key]), _container(hints[key])
        if container is list and isinstance(value, str):
            value = values[key] = [value]  # one pattern is a list of one
        parts: list[tuple[Any, str]] = []
        if inner:
            parts = [(value, whole)]
        elif container is not None and value is not None and not isinstance(value, container):
            what = "a list" if container is list else "a group of keys"
            raise UserError(f"config: {source}: `{whole}`: {value!r} is not {what}")
        elif element and value is not None:
            named = value.items() if container is dict else enumerate(value)
            parts = [(part, f"{whole}.{name}" if container is dict else f"{whole}[{name}]") for name, part in named]
        for part, place in parts:
            if isinstance(part, dict):
                _check_keys(inner or element, part, source, f"{place}.")  # type: ignore[arg-type]
            elif part is not None:
                raise UserError(f"config: {source}: `{place}`: {part!r} is not a group of keys")


def _container(hint: Any) -> tuple[type | None, type | None]:
    """(list or dict, the dataclass of its parts) of a hint."""
    for option in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        if (origin := typing.get_origin(option)) in (list, dict):
            return origin, _dataclass_in(typing.get_args(option)[-1])
    return None, None


def _dataclass_in(hint: Any) -> type | None:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _unknown(source: str, whole: str, key: str, schemas: list[type], prefix: str = "") -> UserError:
    fields = {f.name: f for schema in schemas for f in dataclasses.fields(schema)}
    nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    message = f"config: {source}: `{whole}`: unknown key."
    if nearest:
        found = fields[nearest[0]]
        kind = found.type if isinstance(found.type, str) else getattr(found.type, "__name__", found.type)
        help_text = found.metadata.get("help", "")
        about = f"{kind}{'; ' + help_text if help_text else ''}"
        if found.default is not MISSING:
            about += f"; default {found.default!r}"
        return UserError(f"{message} Did you mean `{prefix}{nearest[0]}` ({about})?")
    return UserError(f"{message} Known here: {', '.join(sorted(fields))}")


def _directory(run: RunConfig) -> Path:
    return Path(run.runs).expanduser().absolute() / run.name


def _check_values(run: RunConfig, source: str) -> None:
    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: {source}: `{key}`: {why}")

    # Best are letters, digits, '.', '_' and '-'; but a run that was moved may have any name.
    if not re.fullmatch(r"[^-/\x00-\x1f][^/\x00-\x1f]*(/[^/\x00-\x1f]+)*", run.name or "") or ".." in run.name:
        refuse("name", f"{run.name!r} cannot be a directory name. Use letters, digits, '.', '_' and '-'.")
    if bad := re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", "" if "://" in run.runs else str(_directory(run))):
        where = f"{str(_directory(run))!r} has {bad[0]!r} in it"
        refuse("runs", f"{where}, which a batch script cannot hold. Choose another directory.")
    if run.sweep and run.operator:
        refuse("sweep", "is for trainings; this is a map job. Launch it once for each value, with another `name=`.")
    for key, why in cluster_checks.mistakes(run.cluster):
        refuse(f"cluster.{key}", why)
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


def _semantic(config: Any) -> dict[str, Any]:
    """Fields that differ from their default and are not of the execution kind, nested dataclasses included."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("execution"):
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if inner := _semantic(value):
                out[f.name] = inner
            continue
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            out[f.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    """Lists and mappings of settings as what differs from their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _semantic(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
