#!/usr/bin/env bash
# A CLIP is trained on a mix of original and new captions, and asked to find pictures by text.
# Usage: bash examples/4_clip/run.sh [OUT], from the repository's root.
set -euo pipefail
OUT=${1:-runs/examples/4_clip}
HERE=$(dirname "$0")

python -m recap.worlds.flags "$OUT/pictures" --alt --shards 2 --samples 64 --seed 1
python -m recap.worlds.flags "$OUT/held_out" --shards 1 --samples 64 --seed 2
python -m hpc.launch examples/1_caption/caption.yaml runs="$OUT" data.shards="[$OUT/pictures]"

# A tokenizer of these texts; with a real CLIP in mind, name one that exists instead.
python -m recap.clip.make_tokenizer "$OUT/words" --architecture hf --vocabulary 512 --shards "$OUT/pictures/*.tar" --member txt

# Four fifths of the time the new caption, one fifth the alt-text: `text.weights` in the config.
python -m hpc.launch "$HERE/clip.yaml" runs="$OUT" data.shards="[$OUT/pictures]" \
    data.columns.re_caption.run="$OUT/captions" model.tokenizer="$OUT/words"
python -m recap.clip.evaluate "$OUT/clip/exports/final" retrieve --shards "$OUT/held_out" --member txt
# By chance one in thirteen pictures is among the five nearest of 64 descriptions (i2t_r5 0.08); here every second one.
# The export opens in CLIPModel.from_pretrained and in open_clip (local-dir:).
