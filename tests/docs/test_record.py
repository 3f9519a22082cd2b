"""What the pages show of a command is what it prints, but for numbers and what depends on the machine's speed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs import record


def shown() -> list[Any]:
    return [
        pytest.param(
            command, text, id=f"{page.name}: {command}", marks=[pytest.mark.slow] * bool(record.needs(command))
        )
        for page, command, text in record.blocks()
    ]


@pytest.mark.parametrize(("command", "text"), shown())
def test_a_shown_output_is_what_is_printed(command: str, text: str) -> None:
    with record.place(command) as work:
        said = record.run(command, work)
    assert record.masked(said) == record.masked(text), said


def test_a_changed_line_would_be_seen() -> None:
    screen = "a · recap · local\nshards   ███░░ 60.0 %\n         3 of 5 done\nrate     1.6 samples/s (5 min)\n"
    assert record.masked(screen) == ["a · recap · local", "shards 0 % 0 of 0 done", "rate"]
    assert record.masked(screen.replace("3 of 5", "4 of 5").replace("██░", "█░░")) == record.masked(screen)
    assert record.masked(screen.replace("done", "complete")) != record.masked(screen)
    assert {command for _, command, _ in record.blocks()} >= {"python -m hpc.status runs/screen"}
