"""What `recap.export` writes: rows, files, and the card that tells of them."""
