"""Captioning as a map job: the operator that hpc runs over the shards."""
