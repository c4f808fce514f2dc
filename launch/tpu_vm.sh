#!/usr/bin/env bash
# Cloud TPU: copies this checkout to all hosts of a TPU VM or slice, installs it and runs it there on all chips.
#   launch/tpu_vm.sh my-tpu us-central2-b --config=configs/maan.py --workdir=/mnt/shared/run
# Several hosts need a --workdir that all of them can access (Filestore, gcsfuse).
set -euo pipefail
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
on_all=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command)
git archive --prefix=wsal_jax/ -o /tmp/wsal_jax.tgz HEAD
gcloud compute tpus tpu-vm scp /tmp/wsal_jax.tgz "$name:" --zone="$zone" --worker=all
"${on_all[@]}" "tar xzf wsal_jax.tgz && cd wsal_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
"${on_all[@]}" "cd wsal_jax && .venv/bin/python -m wsal_jax.main --distributed $(printf '%q ' "$@")"
