"""All that Slurm is asked or told: batch scripts, submission, the queue."""
