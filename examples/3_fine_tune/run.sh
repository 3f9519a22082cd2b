#!/usr/bin/env bash
# A captioner learns from pairs of your own, and captions with what it learned.
# Usage: bash examples/3_fine_tune/run.sh [OUT], from the repository's root.
set -euo pipefail
OUT=${1:-runs/examples/3_fine_tune}
HERE=$(dirname "$0")

python -m recap.worlds.flags "$OUT/pictures" --shards 1 --samples 64 --seed 1    # here the .txt is a good caption
python -m recap.worlds.flags "$OUT/others" --shards 1 --samples 16 --seed 2

# What will the model be shown, and what of it does it learn? (between the marks)
python -m recap.sft.inspect "$HERE/fine_tune.yaml" data.0.path="$OUT/pictures/*.tar" | head -20
python -m hpc.launch "$HERE/fine_tune.yaml" runs="$OUT" data.0.path="$OUT/pictures/*.tar"
python -m hpc.status "$OUT/tuned"

# The export is a LLaVA checkpoint: transformers and vLLM open it, and so does the captioning job.
python -m hpc.launch examples/1_caption/caption.yaml runs="$OUT" data.shards="[$OUT/others]" \
    captioner.model="$OUT/tuned/exports/final"
python -m recap.report "$OUT/captions" --text
