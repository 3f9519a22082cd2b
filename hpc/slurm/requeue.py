"""A job that requeues itself to start again after others. It keeps its id, so that jobs that depend on it wait on."""

from __future__ import annotations

import logging
import os
import time

from hpc.base.errors import Exit, UserError
from hpc.slurm import commands as slurm

log = logging.getLogger("requeue")


def wait_for(jobs: list[str]) -> int:
    """Requeue this job, held, until these jobs have ended; returns the exit code to leave with."""
    me = os.environ.get("SLURM_JOB_ID")
    if not me:
        raise UserError(f"gate: jobs {','.join(jobs)} still work; run the gate again when they have ended")
    # A requeue ends this very process. So the job that will release us is submitted first: it waits for the others.
    wake = ["sbatch", "--parsable", f"--dependency=afterany:{':'.join(jobs)}", "--output=/dev/null", "--time=60"]
    wake += [f"--{key}={os.environ[name]}" for key, name in _SAME_PLACE.items() if os.environ.get(name)]
    wake.append(f"--job-name={os.environ.get('SLURM_JOB_NAME', 'job')}-wake")
    # It tries for a while: this job may still be completing when the others have ended, or the controller be away.
    retry = f"for i in $(seq 1000); do scontrol release {int(me)} && exit 0; sleep 3; done; exit 1"
    options = [word.removeprefix("--").partition("=")[0] for word in wake if word.startswith("--")]
    _patiently([*wake, f"--wrap={retry}"], slurm.sbatch_environment(options))
    log.info("waiting for jobs %s", ",".join(jobs))
    _patiently(["scontrol", "requeuehold", me], slurm.environment())
    return Exit.REQUEUE


def _patiently(command: list[str], env: dict[str, str]) -> None:
    """Run it; again where the controller is away for a while."""
    said = ""
    for pause in (2, 10, 30, 60, 0):
        done = slurm.run(command, None, env)
        if done.returncode == 0:
            return
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        time.sleep(pause)
    raise UserError(f"gate: Slurm refuses `{command[0]}`, or its controller has been away for two minutes: {said}")


_SAME_PLACE = {"partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT", "qos": "SLURM_JOB_QOS"}
