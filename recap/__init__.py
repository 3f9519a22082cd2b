"""Image recaptioning and what is trained on it. Knows nothing of Slurm; `hpc` does."""
