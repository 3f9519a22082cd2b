#!/usr/bin/env bash
# Tars of your own become captions: plan, try, run, look, prove, export.
# Usage: bash examples/1_caption/run.sh [OUT], from the repository's root.
set -euo pipefail
OUT=${1:-runs/examples/1_caption}
HERE=$(dirname "$0")

# Two tars of 48 pictures each, with the noisy alt-texts that web pages have: 000000.png, 000000.txt, ...
python -m recap.worlds.flags "$OUT/pictures" --alt --shards 2 --samples 48 --seed 1

# What would be done? Nothing is written.
python -m hpc.launch "$HERE/caption.yaml" runs="$OUT" data.shards="[$OUT/pictures]" --dry-run
# Do model and data work together? The model is loaded and captions four samples.
python -m hpc.launch "$HERE/caption.yaml" runs="$OUT" data.shards="[$OUT/pictures]" --check
# The run itself. On a cluster: cluster=slurm cluster.partition=... cluster.gpus_per_node=8
python -m hpc.launch "$HERE/caption.yaml" runs="$OUT" data.shards="[$OUT/pictures]"

python -m hpc.status "$OUT/captions"            # what was done, and what went wrong
python -m recap.report "$OUT/captions" --text   # a few captions; without --text a page with the images
python -m hpc.verify "$OUT/captions" --full     # every marker, every checksum
python -m recap.export "$OUT/captions" "$OUT/export"
python -c "import pyarrow.dataset as d; t = d.dataset('$OUT/export/data').to_table(); print(t.num_rows, 'rows of', t.column_names)"
