"""What ships with the project so that everything runs offline: flags, their checked facts, a tiny captioner.

Paths of the files; the modules beside this one are the commands that made them.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
FLAGS = HERE / "flags"
"""webdataset tars: `<iso2>.png` (128 px wide), `<iso2>.txt` ("Flag of Chile"), `<iso2>.json`."""

DESCRIPTIONS = HERE / "flags_columns" / "description"
"""One parquet file a shard: key, status, reason, text (the human description, visual part)."""

FLAGS_TRUTH = HERE / "flags_truth.csv"
CAPTIONER = HERE / "captioner"

VAE = HERE / "vae"
"""A small AutoencoderKL of diffusers, 64 px to 4 x 16 x 16: made by `train_vae`."""
