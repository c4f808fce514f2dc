#!/usr/bin/env bash
# NVIDIA GPUs: uses all GPUs of this machine in one process. launch/slurm.sh is for Slurm.
#   launch/gpu.sh --config=configs/maan.py
set -euo pipefail
if [ $# = 0 ]; then
  echo "usage: $0 --config=CONFIG [OPTION ...]" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
[ -d .venv ] || python3 -m venv .venv
.venv/bin/pip install -q -e '.[cuda]'
export JAX_PLATFORMS=cuda
exec .venv/bin/python -m wsal_jax.main "$@"
