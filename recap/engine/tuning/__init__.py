"""Tuning: trials of a job's settings on real samples. See recap.engine.tune."""
