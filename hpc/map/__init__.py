"""Map jobs: slots that claim shards, their engines, and what becomes of the shards."""
