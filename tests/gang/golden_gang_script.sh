#!/bin/bash

# Parameters
#SBATCH --comment=5b1e7a90c3d2
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --job-name=align
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/align/logs/%j.log
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=24:00:00
#SBATCH --wckey=align

# setup
export HPC_LOG=/shared/runs/align/logs/"${SLURM_JOB_ID}.log"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
export SLURM_EXPORT_ENV=ALL  # tasks get this script's environment, whatever --export said of it
boot=BOOTSTRAP
export MASTER_ADDR="$(hostname)"
export MASTER_PORT=$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 12000))

# command
export SUBMITIT_EXECUTOR=slurm
code=0; python3 -I -c "$boot" /shared/runs/align/code/c0ffee123456 hpc.gang.rank /shared/runs/align --submission 5b1e7a90c3d2 --begin && srun --unbuffered --label --kill-on-bad-exit=1 python3 -I -c "$boot" /shared/runs/align/code/c0ffee123456 hpc.gang.rank /shared/runs/align --submission 5b1e7a90c3d2 || code=$?


# teardown
case "$code" in 0|1|2|64) exit "$code" ;; esac
if [ -e /shared/runs/align/control/cancelled ]; then exit "$code"; fi
echo "gang: exit code $code: requeue"
scontrol requeue "${SLURM_JOB_ID}"
exit "$code"
