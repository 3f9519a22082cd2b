"""What is measured. `python -m benchmarks.NAME --help`; docs/speed.md has the figures."""

import recap  # noqa: F401 - its shim of torchvision, before a benchmark imports transformers
