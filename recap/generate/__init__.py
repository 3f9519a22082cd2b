"""A map job that asks a model about each row and writes its parsed answers as a column. The prompt is a template over
columns, with or without the image."""
