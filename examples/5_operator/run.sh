#!/usr/bin/env bash
# An operator of your own makes a column; a script reads it.
# Usage: bash examples/5_operator/run.sh [OUT], from the repository's root.
set -euo pipefail
OUT=${1:-runs/examples/5_operator}
HERE=$(dirname "$0")

python -m recap.worlds.flags "$OUT/pictures" --alt --shards 2 --samples 48 --seed 1

# brightness.py lies beside this script: python finds it on PYTHONPATH, and so do the slots on a cluster.
export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"
python -m hpc.launch "$HERE/brightness.yaml" runs="$OUT" data.shards="[$OUT/pictures]"
python -m hpc.verify "$OUT/brightness" --full

# Its column is parquet, one file a shard; every sample has a row and an outcome.
python "$HERE/look.py" "$OUT/brightness"
