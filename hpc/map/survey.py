"""Where that lies which a job reads of other runs: looked for once, by the launch, and not by each slot and engine.

What a launch finds is in the run directory (`manifests/`) and in its submission: all its slots read the same, whenever
they start. A later launch looks anew, and so does a rerun for the shards that it reopens, whoever takes them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc.base.no_collection import without_collection
from hpc.config import Config
from hpc.operator import Operator, ReadsOtherRuns, Shard
from hpc.run.directory import Run, Submission


def write(run: Run, operator: Operator, shards: Sequence[Shard], missing: Sequence[Shard]) -> dict[str, str]:
    """Names of files in `run.manifests`, {} where the work reads nothing of others.

    Args:
        missing: of these shards, those that do not exist.
    """
    if not isinstance(operator, ReadsOtherRuns):
        return {}
    absent = {shard.id for shard in missing}
    with without_collection():
        return operator.survey(run.manifests, [shard for shard in shards if shard.id not in absent])


def of_launch(run: Run, operator: Operator, shards: Sequence[Shard], missing: Sequence[Shard]) -> dict[str, Any]:
    """What a submission says of it: what reruns find is newer than this from their number `reruns` on."""
    return {"manifests": write(run, operator, shards, missing), "reruns": run.generations.next_number()}


def operator(run: Run, submission: Submission, config: Config) -> Operator:
    """That of a slot or an engine: it knows what its launch has found."""
    made = config.operator()
    if submission.manifests and isinstance(made, ReadsOtherRuns):
        made.surveyed(run.manifests, submission.manifests)
    return made
