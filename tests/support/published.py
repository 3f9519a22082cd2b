"""A map job worked off in this process: its operator reads, applies and publishes as an engine would have it do.

For tests of what jobs make and of who reads it; how engines, slots and kills go about it is tested under tests/map.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc import launch
from hpc.operator import Damage, Item, Row, noted_of
from hpc.run import column as columns
from hpc.run import plan
from hpc.run.directory import Run
from hpc.run.ledger import DONE, Claim


def published(tree: dict[str, Any], device: str = "cpu") -> Run:
    """The run of a config's content (name, runs, operator, ...) with every planned shard done."""
    job = launch.prepare(configs.check({"cluster": {"kind": "local"}, **tree}, "test"))
    run: Any = job.run
    run.make()
    operator: Any = job.operator
    column = operator.column()
    run.new_submission(
        plan=plan.write(run.plans, job.shards), identity=job.identity, column=column.name, code="none", slots=1,
        config=job.config.resolved, source="test", by_rule=sorted(getattr(operator, "by_rule", ())),
    )  # fmt: skip
    operator.setup(device)
    try:
        for shard in job.shards:
            found = list(operator.read(shard))
            rows = applied(operator, [item for item in found if isinstance(item, Item)])
            damage = next((asdict(one) for one in found if isinstance(one, Damage)), None)
            noted = noted_of(operator, shard.id)
            _publish(run, job.identity, column, Claim(shard, 0, 0), rows, damage, noted)
    finally:
        operator.close()
    return run


def applied(operator: Any, items: list[Item]) -> list[Row]:
    """The rows of items, in their order."""
    todo, rows = list(items), list[Row]()
    while len(rows) < len(items):
        while todo and operator.want() > 0:
            operator.put(todo.pop(0))
        rows += operator.poll(0.1)
    rows.sort(key=lambda row: row.index)
    assert [row.index for row in rows] == list(range(len(items)))
    return rows


def _publish(run: Run, identity: str, column: Any, claim: Claim, rows: list[Row], damage: Any, noted: Any) -> None:
    schema = columns.made_from(columns.schema(column, identity), claim.shard)
    file = run.column_file(column.name, identity, claim.shard.id, 0)
    columns.write(file, [columns.to_table(rows, schema)], schema)
    ledger = run.ledger(identity)
    assert ledger.claim(claim, "test")
    marker = {"shard": claim.shard.id, "file": str(file.relative_to(run.path)), **asdict(columns.inspect(file))}
    read = {"uri": claim.shard.uri, "bytes": claim.shard.bytes, "etag": claim.shard.etag}
    facts = {"damage": damage, "input": read, "generation": 0, "epoch": 0, "seconds": 1.0, "noted": noted}
    assert ledger.mark(claim, DONE, {**marker, **facts})


def rows_of(run: Run | Path) -> list[dict[str, Any]]:
    """All rows of a finished run, in the order of its shards."""
    from hpc.run.published import Published

    return [row for shard in Published(run if isinstance(run, Path) else run.path) for row in shard.table().to_pylist()]
