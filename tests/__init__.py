"""Operators of tests run in processes of their own, which need no pandas: pyarrow imports it where it is installed, and
that takes longer than most of their work.
"""

import sys

from hpc.base.no_pandas import without_pandas

if "pytest" not in sys.modules:
    without_pandas()
