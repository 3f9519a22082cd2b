"""Scores of captions against known truth."""
