#!/usr/bin/env bash
# A second pass: a model of texts merges what the web says of a picture with what a captioner sees in it.
# Usage: bash examples/2_fuse/run.sh [OUT], from the repository's root.
set -euo pipefail
OUT=${1:-runs/examples/2_fuse}
HERE=$(dirname "$0")

python -m recap.worlds.flags "$OUT/pictures" --alt --shards 1 --samples 24 --seed 1
python -m hpc.launch examples/1_caption/caption.yaml runs="$OUT" data.shards="[$OUT/pictures]"

# The text model: here a server that knows the truth of generated pictures, so that the example needs no weights. In
# earnest: writer.backend=native writer.model=/models/llama, or any server that speaks OpenAI's protocol (vLLM, SGLang).
python -m recap.worlds.oracle "$OUT/pictures" --port 0 >"$OUT/oracle.log" 2>&1 &
trap 'kill $!' EXIT
until grep -o 'http://[^ ]*' "$OUT/oracle.log" >"$OUT/address"; do sleep 0.2; done

python -m hpc.launch "$HERE/fuse.yaml" runs="$OUT" data.shards="[$OUT/pictures]" \
    data.columns.syn.run="$OUT/captions" writer.endpoint="$(head -1 "$OUT/address")"
python -m recap.report "$OUT/fused" --text
python -m recap.export "$OUT/fused" "$OUT/export"
