"""Metrics of captions and of generated images, as functions of published columns."""
