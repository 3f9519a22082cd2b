"""The ledger: state is a pure function of a set of names, and an epoch has one owner."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.base import atomic
from hpc.operator import Shard
from hpc.run.ledger import CLAIMED, DONE, FAILED, OPEN, Claim, Ledger, State, bucket_of, states

settings.register_profile("patient", deadline=None, derandomize=True)  # a loaded machine is slow, not wrong
settings.load_profile("patient")

IDS = st.sampled_from(
    ["a", "b", "a.g1", "a.g1.e2", "a.g0.done", "train-000.tar", "ü%2Fé", "x.end", ".e0", "a.g1.e2.end"]
)
SUFFIXES = st.builds(
    lambda g, e, kind: f"g{g}." + {"claim": f"e{e}", "end": f"e{e}.end", "done": "done", "failed": "failed"}[kind],
    st.integers(0, 3), st.integers(0, 4), st.sampled_from(["claim", "end", "done", "failed"]),
)  # fmt: skip
NAMES = st.builds(lambda i, s: f"{i}.{s}", IDS, SUFFIXES)
REOPENED = st.dictionaries(IDS, st.integers(0, 4), max_size=3)
FOREIGN = st.sampled_from(
    [".tmp-host-12-0-ab34", "a", "a.g", "a.g1", "a.g1.e", "a.g1.e2.endx", "a.gx.done", "a.g1.done\n", "g1.done", "",
     ".g1.done", "a.g1.e2.done", "a.g٣.done", "README", "lost+found", ".nfs0000", "a.g1.DONE", "a.g-1.done", "a.done"]
)  # fmt: skip


@given(st.lists(NAMES), REOPENED, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(
    names: list[str], reopened: dict[str, int], shuffler: random.Random
) -> None:
    shuffled = names + names[: len(names) // 2]
    shuffler.shuffle(shuffled)
    assert states(shuffled, reopened) == states(names, reopened)


@given(st.lists(NAMES), NAMES, REOPENED)
def test_names_only_add(names: list[str], added: str, reopened: dict[str, int]) -> None:
    """Within its generation a done shard stays done and a failed one terminal; generations and epochs never fall."""
    before, after = states(names, reopened), states([*names, added], reopened)
    for shard, old in before.items():
        new = after[shard]
        assert new.generation >= old.generation
        if new.generation == old.generation:
            assert new.epoch >= old.epoch
            if old.status == DONE:
                assert new.status == DONE
            if old.status == FAILED:
                assert new.status in (DONE, FAILED)
        else:
            assert f".g{new.generation}." in added  # only a name of a higher generation opens one


@given(st.lists(NAMES), st.lists(FOREIGN), REOPENED)
def test_foreign_names_are_ignored(names: list[str], foreign: list[str], reopened: dict[str, int]) -> None:
    meaningless = [n for n in foreign if not states([n])]
    assert states(names + meaningless, reopened) == states(names, reopened)


def test_what_is_foreign() -> None:
    for name in [
        ".tmp-host-12-0-ab34",
        "a",
        "a.g1",
        "a.g1.e",
        "a.g1.e2.endx",
        "a.g1.done\n",
        "a.g٣.done",
        "a.g1.DONE",
        "",
    ]:
        assert states([name]) == {}, name


@given(st.lists(NAMES), IDS)
def test_shards_do_not_disturb_each_other(names: list[str], shard: str) -> None:
    """A shard's state comes from its own names: `<id>.` and one suffix, also where the id looks like a suffix."""
    own = [
        n
        for n in names
        if n.startswith(f"{shard}.") and re.fullmatch(r"g\d\.(e\d(\.end)?|done|failed)", n[len(shard) + 1 :])
    ]
    assert states(names).get(shard) == states(own).get(shard)


def test_rules() -> None:
    def of(*suffixes: str, **reopened: int) -> State:
        return states([f"a.{s}" for s in suffixes], reopened).get("a", State())

    assert of("g0.e0") == State(CLAIMED, 0, 0)
    assert of("g0.e0", "g0.e0.end") == State(OPEN, 0, 0, ended=True)
    assert of("g0.e0", "g0.e0.end", "g0.e1") == State(CLAIMED, 0, 1)
    assert of("g0.e0", "g0.e1", "g0.e1.end") == State(OPEN, 0, 1, ended=True)  # e0 is a zombie: e1 owned and let go
    assert of("g0.e0", "g0.e1", "g0.e0.end") == State(CLAIMED, 0, 1)
    assert of("g0.e0", "g0.failed", "g0.done").status == DONE  # done beats failed
    assert of("g0.e0", "g0.done", "g0.e1").status == DONE
    assert of("g0.done", "g0.e0", "g1.e0") == State(CLAIMED, 1, 0)  # the highest generation counts
    assert of("g0.done", "g1.failed").status == FAILED
    assert of("g0.e0", "g0.failed", a=1) == State(OPEN, 1)  # a rerun opened it
    assert of("g2.done", a=1).status == DONE  # a rerun of long ago
    assert states(["a.g1.e2.g0.e3"]) == {"a.g1.e2": State(CLAIMED, 0, 3)}


@settings(max_examples=20)
@given(st.sets(IDS), REOPENED)
def test_survey_reads_what_states_says(
    tmp_path_factory: pytest.TempPathFactory, ids: set[str], reopened: dict[str, int]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    names = []
    for shard in ids:
        assert ledger.claim(Claim(Shard(shard, "", 0), 0, 0), "me")
        names.append(f"{shard}.g0.e0")
    assert ledger.survey(reopened) == states(names, reopened)
    for shard in ids | set(reopened):
        assert ledger.state(shard, reopened) == states(names, reopened)[shard]


def test_unreadable_content_reads_as_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    claim = Claim(Shard("a", "", 0), 0, 0)
    (tmp_path / bucket_of("a")).mkdir()
    for content in (b"", b"{", b"\0" * 64, b"\xff\xfe\x00", b"[1]", b"null"):
        (tmp_path / bucket_of("a") / claim.stem).write_bytes(content)
        assert ledger.owner("a", 0, 0) == ""
    assert ledger.ends(Claim(claim.shard, 0, 1)) == [{"how": "unexplained", "owner": ""}]


def test_text_that_is_not_unicode_is_recorded(tmp_path: Path) -> None:
    """A file name with undecodable bytes in an error message must not bring the agent down."""
    ledger = Ledger(tmp_path)
    claim = Claim(Shard("a", "", 0), 0, 0)
    assert ledger.claim(claim, "me")
    assert ledger.end(claim, "failed", detail=b"cannot read \xff\xfe.tar".decode(errors="surrogateescape"))
    assert ledger.ends(Claim(claim.shard, 0, 1))[0]["detail"] == "cannot read \udcff\udcfe.tar"


def _claimant(root: str, me: str, barrier: Any, epochs: int, won: Any) -> None:
    ledger = Ledger(Path(root))
    barrier.wait()
    for epoch in range(epochs):
        if ledger.claim(Claim(Shard("a", "", 0), 0, epoch), me):
            won.put((epoch, me))


def test_many_processes_one_owner_per_epoch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.run.test_ledger"])
    barrier, won = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_claimant, args=(str(tmp_path), f"p{i}", barrier, 100, won)) for i in range(8)]
    for process in processes:
        process.start()
    winners = dict(won.get(timeout=240) for _ in range(100))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert won.empty()
    assert sorted(winners) == list(range(100))
    ledger = Ledger(tmp_path)
    for epoch, winner in winners.items():
        assert ledger.owner("a", 0, epoch) == winner
    assert states(ledger.names(bucket_of("a"))) == {"a": State(CLAIMED, 0, 99)}
    assert not [n for n in ledger.names(bucket_of("a")) if n.startswith(atomic.TEMPORARY)]
    assert len(set(winners.values())) > 1, "the processes did not compete"


def test_a_lost_reply_is_a_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS retransmits a link whose reply was lost and gets EEXIST: the link count of our own file tells the truth."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert atomic.create(tmp_path / "new", b"mine")
    monkeypatch.undo()
    assert not atomic.create(tmp_path / "new", b"other's")
    assert (tmp_path / "new").read_bytes() == b"mine"
