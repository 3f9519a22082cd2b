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

from hpc.config.checked import Config, directory_of, identity
from hpc.config.loading import changed, check, check_run, load, merged, profile, read, tree_of
from hpc.config.overrides import assign, parsed, with_overrides
from hpc.config.schema import ClusterConfig, ContainerConfig, GangConfig, MapConfig, RunConfig
from hpc.config.structure import structured
from hpc.config.yaml_text import dump

__all__ = [
    "ClusterConfig",
    "Config",
    "ContainerConfig",
    "GangConfig",
    "MapConfig",
    "RunConfig",
    "assign",
    "changed",
    "check",
    "check_run",
    "directory_of",
    "dump",
    "identity",
    "load",
    "merged",
    "parsed",
    "profile",
    "read",
    "structured",
    "tree_of",
    "with_overrides",
]
