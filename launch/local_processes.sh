#!/usr/bin/env bash
# Runs several processes on this machine's CPU, joined by jax.distributed and Gloo, to try out what a cluster does.
#   launch/local_processes.sh 2 --config=configs/maan.py:quick --workdir=runs/two
# The script passes Ctrl-C or SIGTERM on to all processes, which save and exit, and exits after them.
set -euo pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PROCESSES --config=CONFIG [OPTION ...]" >&2
  exit 2
fi
count=$1
shift
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
python=${PYTHON:-python}
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
set -m # a process group for each, so that Ctrl-C reaches only this script, which passes it on once
pids=() signalled=''
# shellcheck disable=SC2329 # the traps call it
pass_on() {
  signalled=1
  kill "-$1" "${pids[@]}" 2>/dev/null || true
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM
for ((i = 0; i < count; i++)); do
  "$python" -m wsal_jax.main --distributed --coordinator="localhost:$port" --processes="$count" --process="$i" "$@" &
  pids+=($!)
done
for _ in "${pids[@]}"; do # the first failure ends all, with its status
  status=0
  wait -n || status=$?
  [ "$status" = 0 ] || break
done
running() { [ -n "$(jobs -pr)" ]; }
for ((tenths = 0; tenths < 100; tenths++)); do # the others have stopped too, or are waiting for the failed process
  running || break
  if [ -n "$signalled" ]; then tenths=0; fi # wait while they save
  sleep 0.1
done
kill -KILL "${pids[@]}" 2>/dev/null || true
exit "$status"
