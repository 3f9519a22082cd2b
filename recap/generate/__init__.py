"""A job of models that write any column: a template over an image, or none, and columns; its answers parsed."""
