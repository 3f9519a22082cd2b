"""A drill: what a site's Slurm and file system do when they are asked what runs ask of them."""
