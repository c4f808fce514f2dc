#!/usr/bin/env bash
# Slurm: runs on NVIDIA GPUs of one node or several, and goes back into the queue until the run is done. Submit it from
# the checkout, whose .venv all nodes see:
#   python3 -m venv .venv && .venv/bin/pip install -e '.[cuda]'
#   sbatch --gpus-per-node=1 --time=4:00:00 launch/slurm.sh --config=configs/maan.py --workdir=/shared/run
# Several nodes, or several processes, need a task for each GPU:
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=4:00:00 launch/slurm.sh --config=... --workdir=...
# Two minutes before the end of the time, the tasks get SIGTERM.
#SBATCH --job-name=wsal_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
workdir=''
for option in "$@"; do
  case $option in --workdir=?*) workdir=${option#*=} ;; esac
done
if [ -z "$workdir" ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "usage: sbatch [OPTION OF SBATCH ...] launch/slurm.sh --config=CONFIG --workdir=FOLDER [OPTION ...]" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file
if [ ! -x .venv/bin/python ]; then
  echo "$PWD/.venv/bin/python is missing: install as launch/slurm.sh says, and submit from the checkout" >&2
  exit 2
fi
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then rm -f "$workdir/lock"; fi # of a node that is gone
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi # srun does not inherit it
if [ "${SLURM_NTASKS:-${SLURM_JOB_NUM_NODES:-1}}" -gt 1 ]; then set -- --distributed "$@"; fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
trap : TERM # preemption signals this script as well, which has to outlive the tasks
status=0
srun --kill-on-bad-exit=0 .venv/bin/python -m wsal_jax.main "$@" || status=$? # the first task to end spares the others
case $status in
  130 | 143) # saved; but do not revive a job that somebody has cancelled
    if [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
      echo "stopped with status $status: back into the queue" >&2
      scontrol requeue "$SLURM_JOB_ID"
      status=0
    fi
    ;;
esac
exit "$status"
