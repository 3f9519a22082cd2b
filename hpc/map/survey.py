"""Where the data of other runs lies that a job reads. The launch looks for it once, so that not each slot and engine
must.

What a launch finds stands in the run directory (`manifests/`), and the names of these files in its submission: all of
its slots read the same, whenever they start. A later launch looks anew, and so does a rerun, for the shards that it
reopens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc.base.no_collection import without_collection
from hpc.config import Config
from hpc.operator import Operator, ReadsOtherRuns, Shard
from hpc.run.directory import Run, Submission


def write(run: Run, operator: Operator, shards: Sequence[Shard], missing: Sequence[Shard]) -> dict[str, str]:
    """Look for that data and write it down. Returns the names of files in `run.manifests`, {} where the work reads
    nothing of other runs.

    Args:
        missing: of these shards, those that do not exist.
    """
    if not isinstance(operator, ReadsOtherRuns):
        return {}
    absent = {shard.id for shard in missing}
    with without_collection():
        return operator.survey(run.manifests, [shard for shard in shards if shard.id not in absent])


def of_launch(run: Run, operator: Operator, shards: Sequence[Shard], missing: Sequence[Shard]) -> dict[str, Any]:
    """The fields of a submission about it: `manifests`, and `reruns`, the number from which on what reruns find is
    newer than this.
    """
    return {"manifests": write(run, operator, shards, missing), "reruns": run.generations.next_number()}


def operator(run: Run, submission: Submission, config: Config) -> Operator:
    """The operator for a slot or an engine, which knows what its launch has found."""
    made = config.operator()
    if submission.manifests and isinstance(made, ReadsOtherRuns):
        made.surveyed(run.manifests, submission.manifests)
    return made
