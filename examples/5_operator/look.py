"""Print the brightest and the darkest picture of a run of `brightness.Brightness`."""

import sys

import pyarrow as pa

from hpc.run.published import Published

tables = [shard.table() for shard in Published(sys.argv[1])]
rows = [row for row in pa.concat_tables(tables).to_pylist() if row["status"] == "ok"]
for what, row in (("darkest", min(rows, key=lambda r: r["mean"])), ("brightest", max(rows, key=lambda r: r["mean"]))):
    sys.stdout.write(f"{what}: {row['key']} ({row['mean']:.0f} of 255, spread {row['spread']:.0f})\n")
