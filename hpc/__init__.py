"""How work reaches a Slurm cluster and survives there. Knows nothing of images, text or models."""
