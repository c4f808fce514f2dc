#!/usr/bin/env bash
# Cloud TPU: copies this checkout (its last commit) to all hosts of a TPU VM or slice that is there, installs it and
# runs it on all chips.
#   launch/tpu_vm.sh my-tpu us-central2-b --config=configs/maan.py --workdir=/mnt/shared/run
# Several hosts need a --workdir that all of them can access (Filestore, gcsfuse). Exit status: that of the first host
# that failed; 75 if the connection broke off and the run may go on there.
set -euo pipefail
if [ $# -lt 3 ] || [[ $1 == -* || $2 == -* ]]; then
  echo "usage: $0 NAME ZONE --config=CONFIG --workdir=FOLDER [OPTION ...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
on_all() { # ServerAliveInterval ends the connection to a host that has vanished
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$1"
}
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT
git archive --prefix=wsal_jax/ -o "$packed/wsal_jax.tgz" HEAD
gcloud compute tpus tpu-vm scp "$packed/wsal_jax.tgz" "$name:" --zone="$zone" --worker=all
# The hosts' own Python may be too old; uv brings one.
uv=.local/bin/uv
on_all "tar xzf wsal_jax.tgz && { [ -x $uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh; } && cd wsal_jax &&
  { [ -x .venv/bin/python ] || ~/$uv venv -q --python=3.12 .venv; } && ~/$uv pip install -q -e '.[tpu]'"
# gcloud starts a command anew when its connection breaks off, but the first may live.
once=started-$(date +%s)-$$
on_all "cd wsal_jax && { mkdir $once || exit 75; } &&
  .venv/bin/python -m wsal_jax.main --distributed $(printf '%q ' "$@")"
