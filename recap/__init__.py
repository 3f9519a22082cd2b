"""Image recaptioning and what is trained on it. Knows nothing of Slurm; `hpc` does."""

from recap import torchvision_shim  # noqa: F401 - before anything imports torchvision, which imports nothing itself
