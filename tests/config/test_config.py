"""Configs: mistakes are named with their remedy, and an identity says what makes the output, no more and no less."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.config.cluster_checks import slurm_seconds
from hpc.gang import launch as gang_launch
from hpc.map import launch as map_launch
from tests.support.echo import Echo, EchoConfig
from tests.support.jobs import ROOT, EchoJob
from tests.train.tiny import TinyTrainer

# Identity of an echo job with all fields at their default. While it stands, what earlier versions made stays valid.
GOLDEN = "9ea172bc"


def write(folder: Path, **keys: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"name": "n", "operator": "tests.support.echo.Echo", "cluster": "local", **keys}))
    return path


def load(folder: Path, *overrides: str, **keys: Any) -> configs.Config:
    return configs.load(write(folder, **keys), list(overrides))


def identity(config: configs.Config) -> str:
    return configs.identity(config, config.operator())


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, named, remedy",
    [
        ({"prefx": "x"}, "`prefx`", "Did you mean `prefix`"),
        ({"map": {"leases": 3}}, "`map.leases`", "Did you mean `map.lease_s`"),
        ({"cluster": {"kind": "local", "slot": 3}}, "`cluster.slot`", "Did you mean `cluster.slots`"),
        ({"zzzzzz": 1}, "`zzzzzz`", "Known here:"),
        ({"name": "../up"}, "`name`", "Use letters"),
        ({"name": ""}, "`name`", "Use letters"),
        ({"map": {"max_failed": 1.5}}, "`map.max_failed`", "between 0 and 1"),
        ({"map": {"segment": 0}}, "`map.segment`", "less than 1"),
        ({"map": {"lease_s": 0}}, "`map.lease_s`", "positive"),
        ({"map": {"segment": "many"}}, "segment", "many"),
        ({"map": 5}, "map", ""),
        ({"cluster": {"kind": "pbs"}}, "`cluster.kind`", "local or slurm"),
        ({"cluster": {"time": "soon"}}, "`cluster.time`", "24:00:00"),
        ({"cluster": {"slots": 0}}, "`cluster.slots`", "less than 1"),
        ({"cluster": {"gpus_per_node": -1}}, "`cluster.gpus_per_node`", "less than 0"),
        ({"cluster": {"device": "tpu"}}, "`cluster.device`", "cpu or cuda"),
        ({"cluster": {"prelude": ["trap 'rm -r x' SIGTERM"]}}, "`cluster.prelude`", "Remove the trap"),
        ({"cluster": "no-such-profile"}, "`cluster`", "Shipped: local, slurm"),
        ({"operator": "tests.support.echo.Ekho"}, "`operator`", "dotted path"),
        ({"operator": "no.such.module.X"}, "`operator`", "dotted path"),
        ({"operator": ""}, "operator", "dotted path"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, keys: dict[str, Any], named: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **keys)
    assert named in str(error.value) and remedy in str(error.value)
    assert "\n" not in str(error.value).strip() or "YAML" in str(error.value)


@pytest.mark.parametrize("override", ["prefx=1", "map.leases=3", "=3", "prefix", "name.x=1"])
def test_mistakes_on_the_command_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="config"):
        load(tmp_path, override)


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "\ta: b: c"])
def test_files_that_are_no_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        configs.load(tmp_path / "bad.yaml", [])
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="not YAML"):
        configs.load(tmp_path / "bytes.yaml", [])
    with pytest.raises(UserError, match="does not exist"):
        configs.load(tmp_path / "none.yaml", [])


# --- values -----------------------------------------------------------------------------------


def test_a_time_limit_must_leave_time_before_the_drain(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: n\noperator: tests.support.echo.Echo\ncluster: {kind: slurm, time: '5'}\n")
    with pytest.raises(UserError, match=r"over before any work: the drain starts 300 s before its end"):
        configs.load(tmp_path / "c.yaml", [])
    assert configs.load(tmp_path / "c.yaml", ["cluster.time=6"]).run.cluster.time == "6"
    times = {"10": 600, "1:30": 90, "24:00:00": 86400, "1-0": 86400, "1-12:00": 129600, "2-03:04:05": 183845}
    assert {t: slurm_seconds(t) for t in times} == times


@pytest.mark.parametrize("time", ["24:00:00", "0:30:00", "1-00:00:00", "2-12", "90", "12:30"])
def test_times_need_no_quotes(tmp_path: Path, time: str) -> None:
    """YAML 1.1 would read 24:00:00 as 86400."""
    path = tmp_path / "config.yaml"
    path.write_text(f"name: n\noperator: tests.support.echo.Echo\ncluster:\n  kind: local\n  time: {time}\n")
    assert configs.load(path, []).run.cluster.time == time
    assert load(tmp_path, f"cluster.time={time}").run.cluster.time == time


def test_numbers_and_text(tmp_path: Path) -> None:
    assert load(tmp_path, "map.lease_s=1e2").run.map.lease_s == 100.0
    assert load(tmp_path, "map.max_failed=5e-2").run.map.max_failed == 0.05
    assert load(tmp_path, "prefix=2024-01-01").work.prefix == "2024-01-01"
    assert load(tmp_path, "prefix='7'").work.prefix == "7"
    assert load(tmp_path, "prefix={0..9}").work.prefix == "{0..9}"
    assert load(tmp_path, "prefix={a,b}.tar").work.prefix == "{a,b}.tar"
    assert load(tmp_path, "prefix=what # is").work.prefix == "what # is"
    assert load(tmp_path, "prefix=two\nlines\n").work.prefix == "two\nlines\n"
    assert load(tmp_path, "prefix='a # b' # c").work.prefix == "a # b"
    for lines in (["/d/{a,b}/1.tar", "/d/c.tar"], ["{a,b}/{0..3}.tar"], ["s3://b/x{1,2,3}.tar"]):
        assert load(tmp_path, f"cluster.prelude=[{', '.join(lines)}]").run.cluster.prelude == lines
    assert load(tmp_path, "prefix=a=b").work.prefix == "a=b"
    assert load(tmp_path, prefix="${HOME} and ${oc.env:USER}").work.prefix == "${HOME} and ${oc.env:USER}"
    assert load(tmp_path, prefix="日本 “x”").work.prefix == "日本 “x”"
    assert load(tmp_path, "cluster.prelude=[module load a,module load b]").run.cluster.prelude == [
        "module load a",
        "module load b",
    ]


def test_entries_of_lists() -> None:
    """By their number, in groups and in plain lists."""
    shipped = str(ROOT / "configs/sft/own_tars.yaml")
    made = configs.load(shipped, ["data.0.path=/mine/{0..9}.tar", "data.0.prompts.0=Say it.", "trainable.1=lm_head"])
    assert (made.work.data[0].path, made.work.data[0].prompts) == ("/mine/{0..9}.tar", ["Say it."])
    assert made.work.data[0].kind == "columns" and made.work.trainable[1] == "lm_head"
    for override, said in {
        "data.1.path=x": "`data.1.path`: '1' is not the number of an entry of this list (0 to 0)",
        "data.path=x": "'path' is not the number of an entry",
        "trainable.3=x": "(0 to 2)",
        "data.0.pth=x": "`data[0].pth`: unknown key. Did you mean `data[0].path`",
        "data.0.path.x=y": "`data.0.path` is not a group of keys",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            configs.load(shipped, [override])


def test_a_sweep_s_arms_change_entries_of_lists_and_of_mappings() -> None:
    """As the command line does; a mapping for a group of keys changes those that it names."""
    shipped = configs.load(ROOT / "configs/sft/own_tars.yaml", [])
    arm = configs.changed(shipped, {"data.0.path": "/mine/*.tar", "train": {"lr": 0.5}}, "here").work
    assert (arm.data[0].path, arm.data[0].kind) == ("/mine/*.tar", "columns")
    assert (arm.train.lr, arm.train.batch) == (0.5, shipped.work.train.batch)
    assert shipped.work.data[0].path == "recap/demo/flags/*.tar" == shipped.resolved["data"][0]["path"]
    with pytest.raises(
        UserError, match=re.escape("`data.1.path`: '1' is not the number of an entry of this list (0 to 0)")
    ):
        configs.changed(shipped, {"data.1.path": "x"}, "here")
    clip = configs.load(ROOT / "configs/clip/demo.yaml", [])
    arm = configs.changed(
        clip, {"data.columns.re_caption.folder": "made", "text": {"weights": {"a": 1.0}}}, "here"
    ).work
    assert set(arm.data.columns) == set(clip.work.data.columns) and arm.data.columns["re_caption"].folder == "made"
    assert arm.text.weights == {"a": 1.0}, "names of one's own are replaced"


def test_overrides_win_and_profiles_are_found(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "site.yaml").write_text("kind: slurm\npartition: gpu\ntime: 2:00:00\n")
    config = load(tmp_path, "cluster.partition=cpu", "cluster=site", "map.segment=3", map={"segment": 5, "attempts": 2})
    assert (config.run.cluster.kind, config.run.cluster.partition, config.run.cluster.time) == (
        "slurm",
        "cpu",
        "2:00:00",
    )
    assert (config.run.map.segment, config.run.map.attempts) == (3, 2)


def test_a_submission_s_record_is_a_config_again(tmp_path: Path) -> None:
    """Workers check the resolved config that the launch recorded: nothing may change on that way."""
    config = load(tmp_path, "prefix=${x}", "cluster.time=24:00:00", "map.max_failed=0.1")
    again = configs.check(json.loads(json.dumps(config.resolved)), config.source)
    assert again.resolved == config.resolved and identity(again) == identity(config)


# --- identity ---------------------------------------------------------------------------------


def test_golden_identity(tmp_path: Path) -> None:
    assert identity(load(tmp_path)) == GOLDEN


def test_what_an_identity_depends_on(tmp_path: Path) -> None:
    base = identity(load(tmp_path))
    for override in ("name=other", "runs=/elsewhere", "inputs=/data", "delay_s=1", "batch=2", "map.segment=7",
                     "map.max_failed=0.5", "cluster.slots=9", "cluster=slurm", "cluster.time=1:00:00"):  # fmt: skip
        assert identity(load(tmp_path, override)) == base, override
    assert identity(load(tmp_path, "prefix=''")) == base  # the default, said aloud
    others = {identity(load(tmp_path, o)) for o in ("prefix=x", "prefix=y", "column=z")}
    assert len(others | {base}) == 4


def test_a_new_field_changes_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Inner:
        shade: str = "plain"
        threads: int = field(default=1, metadata={"execution": True})

    @dataclass
    class Later(EchoConfig):
        suffix: str = ""
        tags: list[str] = field(default_factory=list)
        inner: Inner = field(default_factory=Inner)

    base = load(tmp_path)
    monkeypatch.setattr(Echo, "Config", Later)
    grown = configs.Config(base.source, base.run, Later(), Echo, {})
    assert identity(grown) == GOLDEN
    grown.work.inner.threads = 8
    assert identity(grown) == GOLDEN
    for change in ({"suffix": "x"}, {"tags": ["x"]}, {"inner": Inner(shade="dark")}):
        assert identity(dataclasses.replace(grown, work=Later(**change))) != GOLDEN


def test_a_version_raised_by_hand_changes_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(tmp_path)
    monkeypatch.setattr(Echo, "version", 2)
    assert identity(config) != GOLDEN


def test_the_refusal_of_an_old_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that was raised is named with what it changed; settings and versions that changed are both named."""
    job = EchoJob(tmp_path, {"a": ["x"]})

    def prepare(*overrides: str) -> Any:
        return map_launch.prepare(configs.load(job.config_file, list(overrides)))

    map_launch.record(prepare())
    monkeypatch.setattr(Echo, "version", 3)
    monkeypatch.setattr(Echo, "changes", {2: "louder", 3: "in colour"}, raising=False)
    with pytest.raises(UserError, match=r"version 1 → 3: louder; in colour; identity .* → .*--supersede"):
        prepare()
    with pytest.raises(UserError, match=r"changed \(prefix, version 1 → 3: louder; in colour;"):
        prepare("prefix=y")


def test_the_refusal_of_an_old_training_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a gang's trainer too, whose identity it enters."""
    (tmp_path / "c.yaml").write_text(
        f"name: r\nruns: {tmp_path}\ntrainer: tests.train.tiny.TinyTrainer\ncluster: {{kind: local, device: cpu}}\n"
    )

    def prepare(*overrides: str) -> gang_launch.GangJob:
        return gang_launch.prepare(configs.load(tmp_path / "c.yaml", list(overrides)), supersede=False)

    job = prepare()
    job.run.make()
    job.run.new_submission(**gang_launch.record(job, "code"))
    assert prepare().previous is not None
    monkeypatch.setattr(TinyTrainer, "version", 2)
    monkeypatch.setattr(TinyTrainer, "changes", {2: "another optimizer"}, raising=False)
    with pytest.raises(UserError, match=r"version 1 → 2: another optimizer"):
        prepare()
    with pytest.raises(UserError, match=r"width, version 1 → 2: another optimizer"):
        prepare("width=8")


@dataclass
class Words:
    """Keys of three shapes."""

    one: str = ""
    many: list[str] = field(default_factory=list)
    tree: dict[str, Any] = field(default_factory=dict)


SECRET = "${oc.env:SECRET}"
SPELLINGS = [SECRET, f"\\{SECRET}", f"\\\\{SECRET}", f"a\\\\\\{SECRET}b", "${one}", "$${x}"]


@given(st.text(st.sampled_from("\\${}a:. '\"")) | st.lists(st.sampled_from([*SPELLINGS, "\\", "x"])).map("".join))
@example("".join(SPELLINGS))
def test_no_value_is_resolved_however_it_is_spelled(text: str) -> None:
    made = configs.structured(Words, {"one": text, "many": [text], "tree": {"a": [text], "b": {"c": text}}}, "test")
    assert made == Words(text, [text], {"a": [text], "b": {"c": text}})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_secret_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    keys = {"prefix": spelling, "cluster": {"kind": "local", "prelude": [spelling], "sbatch": {"comment2": spelling}}}
    config = configs.load(write(tmp_path, **keys), [f"cluster.account={spelling}"])
    assert "s3cr3t" not in json.dumps(config.resolved) and config.work.prefix == spelling


@pytest.mark.parametrize(
    "keys", [{"prefix": "???"}, {"cluster": {"account": "???"}}, {"cluster": {"prelude": ["???"]}}]
)
def test_what_is_still_to_be_written_is_an_error(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="still to be written"):
        configs.load(write(tmp_path, **keys), [])


def test_what_is_dumped_is_read_again(tmp_path: Path) -> None:
    tree = {"a": "1e-3", "b": "24:00:00", "c": 1e-3, "d": "007", "e": ["yes", None, 2.5e9], "f": "${x}", "g": "é\n"}
    (tmp_path / "c.yaml").write_text(configs.dump(tree))
    assert configs.read(tmp_path / "c.yaml") == tree
