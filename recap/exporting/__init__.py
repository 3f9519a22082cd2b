"""The parts of `recap.export`: rows, files, and the card (README.md) that describes them."""
