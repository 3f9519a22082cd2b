"""Pipelines: stages that need one another, each a run of its own."""
