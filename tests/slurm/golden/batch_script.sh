#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --array=0-63%32
#SBATCH --comment=5b1e7a90c3d2
#SBATCH --cpus-per-task=64
#SBATCH --exclude='node[13,27]'
#SBATCH --gpus-per-node=8
#SBATCH --job-name=first
#SBATCH --mem=921600M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/first/logs/%A_%a.log
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=weekly
#SBATCH --signal=USR2@300
#SBATCH --time=24:00:00
#SBATCH --wckey=first

# setup
export HPC_LOG=/shared/runs/first/logs/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.log"
export HPC_LIFE="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
witness() {
  local up; read -r up _ < /proc/uptime
  printf '{"event":"%s","life":"%s","job":"%s","host":"%s","up":%s,"t":%(%s)T,"since":%s}\n' "$1" "$HPC_LIFE" "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" "${SLURMD_NODENAME:-$HOSTNAME}" "$up" -1 "${SLURM_JOB_START_TIME:-0}" 2>/dev/null >>/shared/runs/first/allocations/5b1e7a90c3d2-"$SLURM_ARRAY_TASK_ID.jsonl" || :
}
trap 'witness end' EXIT
witness begin
module load cuda
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
export SLURM_EXPORT_ENV=ALL  # tasks get this script's environment, whatever --export said of it
boot=BOOTSTRAP

# command
export SUBMITIT_EXECUTOR=slurm
code=0; srun --unbuffered --kill-on-bad-exit=1 --cpu-bind=none python3 -I -c "$boot" /shared/runs/first/code/c0ffee123456 hpc.worker /shared/runs/first --submission 5b1e7a90c3d2 --slot "$SLURM_ARRAY_TASK_ID" || code=$?


# teardown
witness end
case "$code" in 0|1|2|64) exit "$code" ;; esac
if [ -e /shared/runs/first/control/cancelled ]; then exit "$code"; fi
echo "slot ${SLURM_ARRAY_TASK_ID}: exit code $code: requeue"
scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
exit "$code"
