#!/usr/bin/env bash
# NVIDIA GPUs: uses all GPUs of this machine in one process, or under Slurm (srun launch/gpu.sh ...) those of all tasks.
#   launch/gpu.sh --config=configs/maan.py
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] || python3 -m venv .venv
.venv/bin/pip install -q -e '.[cuda]'
export JAX_PLATFORMS=cuda
exec .venv/bin/python -m wsal_jax.main ${SLURM_NTASKS:+--distributed} "$@"
