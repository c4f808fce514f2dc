#!/usr/bin/env bash
# Cloud TPU spot machines, asked for as a queued resource, until the run is done: what is taken away is asked for again.
#   export SETUP='mountpoint -q /mnt || sudo mount 10.0.0.2:/share /mnt'
#   launch/tpu_spot.sh my-run us-west4-a v5litepod-16 v2-alpha-tpuv5-lite --config=configs/maan.py --workdir=/mnt/run
# SETUP runs on all hosts before each start. However this script ends, it deletes the machines: keep it running.
# Cost: chips x hours x price of a chip's hour; docs/cluster.md works out the hours.
set -euo pipefail
workdir=''
for option in "${@:5}"; do
  case $option in --workdir=/*) workdir=${option#*=} ;; esac
done
if [ -z "$workdir" ] || [[ $1$2$3$4 == *--* ]]; then
  echo "usage: [SETUP=COMMAND] $0 NAME ZONE TYPE VERSION --config=CONFIG --workdir=/FOLDER/THAT/STAYS [OPTION ...]" >&2
  exit 2
fi
name=$1 zone=$2 type=$3 version=$4
shift 4
cd "$(dirname "$0")/.."
pause=${PAUSE:-60} # seconds between two looks at the queue

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" --quiet "${@:2}"; }
state() { queued describe --format='value(state.state)' 2>/dev/null || true; }
gone() { [[ $(queued describe 2>&1) == *NOT_FOUND* ]]; }

remove() {
  for _ in 1 2 3 4 5; do
    if queued delete --force || gone; then
      ours=''
      return
    fi
    sleep "$pause"
  done
  echo "$name in $zone was not deleted and may cost money: delete it by hand" >&2
  return 1
}

# shellcheck disable=SC2329 # a trap calls it
leave() {
  trap '' INT TERM
  if [ -n "$job" ]; then kill -- "-$job" 2>/dev/null || true; fi
  if [ -n "$ours" ]; then remove || true; fi
}

work() {
  local before=${SETUP:-true}
  # The lock of a machine that has vanished would stop the next one. Here it is known to be gone.
  if [ "$round" -gt 1 ]; then before="{ $before; } && rm -f $(printf '%q' "$workdir/lock")"; fi
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --ssh-flag=-oServerAliveInterval=30 \
    --command="$before" && launch/tpu_vm.sh "$name" "$zone" "$@"
}

attempt() { # waits for the machines and runs on them; status 75: they were taken before that
  local found
  while found=$(state) && [ "$found" != ACTIVE ]; do
    case $found in
      SUSPEND*) return 75 ;;
      FAILED)
        queued describe >&2
        echo "$name was refused: see above" >&2
        exit 1
        ;;
    esac
    sleep "$pause"
  done
  set -m # a process group of its own, so that it can be ended as a whole, and Ctrl-C reaches only this script
  work "$@" </dev/null &
  set +m
  job=$!
  local status=0
  wait "$job" || status=$?
  job=''
  return "$status"
}

if [ -n "$(state)" ]; then
  echo "$name is there already: delete it, or take another name" >&2
  exit 1
fi
job='' ours=''
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for ((round = 1; ; round++)); do
  echo "start $round: asking for $type in $zone" >&2
  ours=1
  queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" --spot || {
    ours=''
    exit 1
  }
  status=0
  attempt "$@" || status=$?
  case $status in
    0) exit ;;
    75 | 130 | 143) ;; # the connection broke off; the run was told to stop, and has saved
    *)
      sleep "$pause" # the state comes late
      if [ "$(state)" = ACTIVE ]; then
        echo "the run failed with status $status, and its machines are still there: see above" >&2
        exit "$status"
      fi
      ;;
  esac
  echo "interrupted with status $status" >&2
  remove
done
