"""Whether the slots of a job will find its operator or trainer. `python -m hpc.launch` finds modules in the current
directory, a slot does not: a module that lies only there would fail in every slot, long after the launch.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

from hpc.base import snapshot
from hpc.config import Config

# Follows a dotted name through packages without running them. Exit code 0 where it leads to a module.
_FIND = """
import sys
path, names = None, sys.argv[1].split(".")
for depth in range(len(names)):
    name = ".".join(names[: depth + 1])
    specs = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for spec in specs if spec is not None), None)
    if spec is None:
        sys.exit(1)
    path = spec.submodule_search_locations or []
"""


def problem(config: Config) -> str:
    """Why slots will not find what the config names, "" where they will, or where that cannot be known here: they run
    another python, or one in a container.
    """
    kind = "trainer" if config.is_gang else "operator"
    dotted = str(getattr(config.run, kind))
    module, cluster = dotted.rpartition(".")[0], config.run.cluster
    top = module.partition(".")[0]
    if top in snapshot.PACKAGES:  # the run carries them along
        return ""
    if cluster.container is not None or cluster.python not in (None, sys.executable):
        return ""
    # -P, as slots are started: without the current directory
    found = subprocess.run([sys.executable, "-P", "-c", _FIND, module], stdin=subprocess.DEVNULL, check=False)
    if found.returncode == 0:
        return ""
    folder = _folder(top)
    return (
        f"config: `{kind}`: {dotted!r} is found in {folder}, where no slot will look: the current directory is not on "
        f"their path. Install it (pip install -e {folder}), or export PYTHONPATH={folder}"
    )


def _folder(top: str) -> Path:
    """The directory in which this process has found a module or a package."""
    module = importlib.import_module(top)
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or "."]
    return Path(places[0]).resolve().parent
