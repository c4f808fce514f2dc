#!/usr/bin/env bash
# Several processes on this machine's CPU, joined by jax.distributed and Gloo: what a cluster does, to try at home.
#   launch/local_processes.sh 2 --config=configs/maan.py:quick --workdir=runs/two
set -euo pipefail
count=$1
shift
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
port=$(python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  python -m wsal_jax.main --distributed --coordinator="localhost:$port" --processes="$count" --process="$i" "$@" &
  pids+=($!)
done
for _ in "${pids[@]}"; do wait -n; done  # the first to fail ends all, with its status
