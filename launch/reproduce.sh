#!/usr/bin/env bash
# Runs a table of the documents anew, or a row of it: results/tables.toml has their commands.
#   DATA=~/composed launch/reproduce.sh methods
#   DATA=~/composed launch/reproduce.sh methods maan.context0
# What was trained before is found in runs/tables and not trained again.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
exec python -m wsal_jax.tables run "$@"
