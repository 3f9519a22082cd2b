"""Submission to Slurm, through submitit's rendering and submission code.

submitit renders the batch script and calls sbatch; its pickles, its signal handler and its sacct watcher are not used:
the batch script runs `python -m hpc.worker RUN --slot $SLURM_ARRAY_TASK_ID`, and the run directory is the only truth.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError

from hpc.base import bootstrap
from hpc.base.errors import FINAL, Unanswered, UserError
from hpc.config import ClusterConfig
from hpc.run.allocations import BEGIN, END, VARIABLE
from hpc.run.directory import Run, Submission
from hpc.slurm import commands as slurm
from hpc.slurm import container, queue
from hpc.slurm.queue import NoSqueueAnswer, find_job

log = logging.getLogger(__name__)

# Errors of sbatch after which it is tried again.
_PASSING = re.compile(
    r"timed out|Unable to contact|Connection (refused|reset)|temporarily|try again|no job id|Communication|Socket",
    re.IGNORECASE,
)
# Errors of sbatch that name a limit on the number of jobs: fewer slots may pass it.
LIMIT = re.compile(r"MaxSubmit|job submit limit|Invalid job array specification", re.IGNORECASE)


def bootstrap_line() -> str:
    """The line of a batch script that holds the text of hpc/base/bootstrap.py."""
    return f"boot={shlex.quote(Path(bootstrap.__file__).read_text())}"


class Launcher(submitit.SlurmExecutor):
    """Renders and submits one job array of node slots. Jobs of other kinds override what differs."""

    log_pattern = "%A_%a.log"  # the log's name, in Slurm's notation
    element = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"  # in the shell: the id that is requeued
    label = "slot ${SLURM_ARRAY_TASK_ID}"  # in the shell: what the log calls it
    records_lives = True  # whether the script records when its lives begin and end, see hpc.run.allocations

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig) -> None:
        super().__init__(folder=run.logs)
        self.run, self.submission, self.cluster = run, submission, cluster
        self.update_parameters(**self._parameters())
        self._shape()

    def _shape(self) -> None:
        """Make it an array."""
        self.parameters["map_count"] = self.submission.slots

    def _halve(self) -> bool:
        """Ask for half as many slots. False where it is one job already."""
        if self.parameters.get("map_count", 1) < 2:
            return False
        self.submission.slots //= 2
        self.run.save(self.submission)
        self.parameters["map_count"] = self.submission.slots
        self.parameters["array_parallelism"] = min(self.parameters["array_parallelism"], self.submission.slots)
        return True

    @classmethod
    def affinity(cls) -> int:
        return 2  # rendering (--dry-run) needs no Slurm on this machine; `submit` says so if sbatch is missing

    def _parameters(self) -> dict[str, Any]:
        """What submitit renders: options of sbatch, by submitit's names, and the shell lines around the command."""
        c = self.cluster
        direct = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "dependency", "gres")
        chosen = {name: getattr(c, name) for name in direct if getattr(c, name) is not None}
        if c.gpus_per_node and not c.gres:
            chosen["gpus_per_node"] = c.gpus_per_node
        if c.cpus_per_node:
            chosen["cpus_per_task"] = c.cpus_per_node
        if c.mem_gb:
            chosen["mem"] = f"{round(c.mem_gb * 1024)}M"
        chosen_too = {k: v for k, v in c.sbatch.items() if v is not None and v is not False}
        further = {"requeue": True, "output": self._output(), "wckey": self.run.name, **chosen_too}
        parameters = {
            **chosen,
            "job_name": self.run.name,
            "time": c.time,
            "nodes": 1,
            "ntasks_per_node": 1,
            "signal_delay_s": c.signal_delay_s,
            "comment": self.submission.uuid,
            "array_parallelism": c.parallel or self.submission.slots,
            "stderr_to_stdout": True,
            "use_srun": False,
            "additional_parameters": {k: _value(v) for k, v in further.items()},
        }
        lines = {"setup": self._setup(), "teardown": self._tail()}
        return {k: _value(v) for k, v in parameters.items()} | lines

    def _output(self) -> str:
        """The path that Slurm writes a job's log to, with %-patterns in it. Slurm replaces no pattern in a path that
        holds a backslash: then Slurm's own output goes to one file for all elements, and the script opens its own log.
        """
        if "\\" in str(self.run.logs):
            return str(self.run.logs / f"slurm-{self.submission.uuid}.log").replace("\\", "\\\\")
        return f"{str(self.run.logs).replace('%', '%%')}/{self.log_pattern}"

    def _setup(self) -> list[str]:
        """The lines before the worker's command: its log, the record of its life, the site's prelude, its code."""
        own_log = ['exec >> "$HPC_LOG" 2>&1'] if "\\" in str(self.run.logs) else []
        return [
            f'export HPC_LOG={shlex.quote(str(self.run.logs))}/"{self.log_name}"',
            *own_log,
            *(self._record_life() if self.records_lives else []),
            *self.cluster.prelude,
            # since Slurm 22.05 srun does not inherit --cpus-per-task
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi',
            "export SLURM_EXPORT_ENV=ALL  # tasks get this script's environment, whatever --export said of it",
            bootstrap_line(),
        ]

    def _record_life(self) -> list[str]:
        """Record when this life begins and, by a trap, when its script ends; the trap also runs where Slurm's TERM ends
        it. A prelude may set a trap of its own, so `_tail` records the end, too; the later record counts.
        """
        file = shlex.quote(str(self.run.allocations / self.submission.uuid)) + '-"$SLURM_ARRAY_TASK_ID.jsonl"'
        record = '{"event":"%s","life":"%s","job":"%s","host":"%s","up":%s,"t":%(%s)T,"since":%s}\\n'
        about = f'"{self.element}" "${{SLURMD_NODENAME:-$HOSTNAME}}" "$up" -1 "${{SLURM_JOB_START_TIME:-0}}"'
        return [
            f'export {VARIABLE}="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"',
            "witness() {",
            "  local up; read -r up _ < /proc/uptime",
            f'  printf \'{record}\' "$1" "${VARIABLE}" {about} 2>/dev/null >>{file} || :',
            "}",
            f"trap 'witness {END}' EXIT",
            f"witness {BEGIN}",
        ]

    @property
    def directory(self) -> str:
        """The run directory that an element works on, as one word of the shell."""
        return shlex.quote(str(self.run.path))

    @property
    def log_name(self) -> str:
        """The name of an element's log, with variables of the shell in it."""
        shell = {"%A": "${SLURM_ARRAY_JOB_ID}", "%a": "${SLURM_ARRAY_TASK_ID}", "%j": "${SLURM_JOB_ID}"}
        return re.sub("%[Aaj]", lambda found: shell[found[0]], self.log_pattern)

    def start(self, module: str, *, python: str = "") -> str:
        """The command that runs a module of the run's code, see hpc.base.bootstrap. python: default is the workers'."""
        code = shlex.quote(str(self.run.code / self.submission.code))
        return f'{python or container.python(self.cluster, self.run.path)} -I -c "$boot" {code} {module}'

    @property
    def host_python(self) -> str:
        """The python of a job on the host, where sbatch and squeue are; a container's image has neither."""
        here = shlex.quote(sys.executable)
        return here if self.cluster.container is not None else container.python(self.cluster, self.run.path)

    def on_the_node(self, module: str, arguments: str) -> str:
        """What starts a module of the run's code, for this run, as one task of the job."""
        srun_args = container.srun_arguments(self.cluster, self.run.path)
        srun = shlex.join(["srun", "--unbuffered", "--kill-on-bad-exit=1", *srun_args])
        return f"{srun} {self.start(module)} {self.directory} {arguments}"

    def worker_command(self) -> str:
        """The command that does the work of an element."""
        return self.on_the_node("hpc.worker", f'--submission {self.submission.uuid} --slot "$SLURM_ARRAY_TASK_ID"')

    def _tail(self) -> list[str]:
        """Requeue this element, unless the run was cancelled or its exit code is one after which a further life would
        change nothing (hpc.base.errors.FINAL). A task that was killed has exit code 137 or 143 here.

        Where Slurm itself sends TERM (scancel, the end of the time limit), the batch shell ends and none of this runs.
        """
        final = "|".join(str(int(code)) for code in FINAL)
        return [
            *([f"witness {END}"] if self.records_lives else []),
            f'case "$code" in {final}) exit "$code" ;; esac',
            f'if [ -e {self.directory}/control/cancelled ]; then exit "$code"; fi',
            f'echo "{self.label}: exit code $code: requeue"',
            f'scontrol requeue "{self.element}"',
            'exit "$code"',
        ]

    def script(self) -> str:
        """The batch script, as submitted."""
        return self._make_submission_file_text(self._command(), self.submission.uuid)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        """submitit's, without the options that the config leaves out (submitit has a wckey of its own)."""
        text: str = super()._make_submission_file_text(command, uid)
        for option in (str(k).replace("_", "-") for k, v in self.cluster.sbatch.items() if v is None or v is False):
            text = re.sub(rf"^#SBATCH --{option}(=.*)?\n", "", text, flags=re.MULTILINE)
        return text

    def _command(self) -> str:
        """The worker's command, whose exit code is left in the shell's `code` for `_tail`."""
        return f"code=0; {self.worker_command()} || code=$?"

    def _sbatch(self) -> str:
        """Call sbatch; returns the job's id. Raises FailedSubmissionError with what sbatch said.

        This is used instead of submitit's own method, which would replace a `%j` in the directory's name.
        """
        text, file = self.script(), self.run.logs / f".submission-{self.submission.uuid}.sh"
        file.write_text(text)
        done = slurm.run(["sbatch", "--parsable", str(file)], None, slurm.sbatch_environment(slurm.options_in(text)))
        if done.returncode:
            raise FailedSubmissionError(done.stderr or done.stdout)
        job_id = self._get_job_id_from_submission_command(done.stdout)
        file.rename(self.run.logs / f"{job_id}_submission.sh")
        return job_id

    @staticmethod
    def _get_job_id_from_submission_command(string: str | bytes) -> str:
        """The id from `sbatch --parsable`: "123" or "123;cluster", on a line of its own (sites decorate the output)."""
        text = string.decode(errors="replace") if isinstance(string, bytes) else string
        for line in text.splitlines():
            if match := re.fullmatch(r"(\d+)(;\S+)?", line.strip()):
                return match[1]
        raise FailedSubmissionError(f"sbatch printed no job id: {text!r}")

    def submit_script(self) -> str:
        """Submit once; returns the job's id (an array's own, not an element's).

        sbatch may fail after the controller has taken the job, so nothing is submitted again before squeue has
        answered that no job carries this submission's comment. Where a site's limit on submitted jobs is met, the
        array is halved: slots are elastic, the work is the same.

        Raises:
            UserError: refused, with Slurm's own words.
            Unanswered: the controller stayed away; whether it has the job is not known.
        """
        self.run.logs.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + queue.PATIENCE_S
        pause = 1.0
        while True:
            try:
                return self._sbatch()
            except FileNotFoundError as error:
                raise UserError("launch: sbatch is not on PATH. Run on a login node, or say cluster=local.") from error
            except FailedSubmissionError as error:
                said = (str(error).strip().splitlines() or ["no reason given"])[-1]
            if found := self._look_up(end):
                return found
            if LIMIT.search(said) and self._halve():
                continue
            if not _PASSING.search(said):
                raise UserError(f"launch: sbatch refused the job: {said}")
            if time.monotonic() > end:
                raise Unanswered(said)
            if pause == 1.0:
                log.warning("Slurm does not answer (%s): trying for %.0f s", said, queue.PATIENCE_S)
            time.sleep(pause)
            pause = min(10.0, 2 * pause)

    def _look_up(self, end: float) -> str | None:
        """The id of the job that carries this submission's comment; None if Slurm has none. Waits for squeue's answer,
        and raises Unanswered where none has come at the time `end`.
        """
        while True:
            try:
                return find_job(self.parameters["comment"])
            except NoSqueueAnswer as error:
                if time.monotonic() > end:
                    raise Unanswered(str(error)) from error
                time.sleep(2.0)


def _value(value: Any) -> Any:
    """An option's value with its backslashes doubled: sbatch reads the quotes of #SBATCH lines as a shell does, but
    also removes backslashes inside them.
    """
    return value.replace("\\", "\\\\") if isinstance(value, str) else value
