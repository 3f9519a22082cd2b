"""What version 2 of every operator that decodes images changed; see `changes` in hpc.operator. Imports nothing."""

VERSION_2 = (
    "images of more than 8 bits, transparent colours, PNGs with large or damaged texts, JPEGs without an end marker, "
    "AVIF and very large images give other pixels now, the same for captions and for training"
)
