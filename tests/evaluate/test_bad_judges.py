"""Judges and captions as they should not be: each case is counted under its name, and no number hides it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hpc import config as configs
from hpc.base.errors import Exit
from hpc.operator import Item, Row
from recap.engine import Caption, CaptionerConfig, Format, Request
from recap.engine.endpoint import EndpointEngine
from recap.evaluate import battles, hallucinated, judged
from recap.generate.explode import ExplodeConfig, ExplodeOperator
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from tests.generate.test_generate import rows_of
from tests.support.jobs import ROOT, command

Says = Callable[[int, str], tuple[int, str, str]]
"""Of the number of a request and its text: status, answer and the model's name."""


@contextmanager
def serving(says: Says) -> Iterator[tuple[str, list[str]]]:
    """A chat server: its URL, and the texts that it was asked."""
    asked: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = body["messages"][-1]["content"]
            text = content if isinstance(content, str) else content[-1]["text"]
            with lock:
                number = len(asked)
                asked.append(text)
            status, said, model = says(number, text)
            choice = {"message": {"content": said}, "finish_reason": "stop"}
            data = json.dumps({"model": model, "choices": [choice]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1", asked
        finally:
            http.shutdown()


def column(folder: Path, texts: dict[str, Any]) -> dict[str, str]:
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"key": list(texts), "caption": list(texts.values())}), folder / "0.parquet")
    return {"folder": str(folder), "field": "caption"}


def shipped(name: str, url: str, shard: Path, **columns: dict[str, str]) -> GenerateConfig:
    """A config of configs/, without its images: those are other tests' work."""
    tree = configs.yaml_text.parse((ROOT / "configs" / f"{name}.yaml").read_text())
    for key in ("name", "operator", "cluster"):
        del tree[key]
    tree["data"] = {"shards": [str(shard)], "columns": columns}
    tree["writer"] |= {"endpoint": url, "served_model": "judge", "window": 1}
    for form in tree["formats"].values():
        form["image"] = False
    return configs.structured(GenerateConfig, tree, name)


def asked(config: GenerateConfig) -> dict[str, Row]:
    operator = GenerateOperator(config)
    operator.setup("cpu")
    try:
        return rows_of(operator)
    finally:
        operator.close()


def account(rows: dict[str, Row]) -> judged.Judged:
    """The rows as the suite counts them."""
    found = judged.Judged(Path("runs/x"))
    for key, row in rows.items():
        judged._count(found, {"shard": "0", "key": key, "status": row.status, "reason": row.reason, **row.values})
    return found


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(bytes(10240))
    return tmp_path / "in"


def test_yes_and_no_are_words_in_every_shipped_config() -> None:
    """YAML 1.1 reads them as truth values, and no answer is "True"."""
    found = [path for path in (ROOT / "configs").rglob("*.yaml") if "[yes, no" in path.read_text()]
    assert len(found) >= 4
    for path in found:
        verdict = configs.yaml_text.parse(path.read_text())["parse"]["verdict"]
        assert all(isinstance(word, str) for word in verdict), path
        again = configs.yaml_text.parse(configs.yaml_text.dump({"verdict": verdict}))
        assert again["verdict"] == verdict and yaml.safe_load(path.read_text())["parse"]["verdict"] != verdict


def test_a_model_that_changes_in_mid_run_is_named(shard: Path) -> None:
    """A path before the name is no change; another name is, whatever it says."""
    names = ["/models/one", "one", "Org/one/", "", "two"]
    with serving(lambda number, text: (200, "4", names[min(number, 4)])) as (url, _):
        engine = EndpointEngine(
            CaptionerConfig(
                backend="openai",
                endpoint=[url],
                served_model="x",
                window=1,
                prompts={"r": Format(text="Rate.", image=False)},  # type: ignore[dict-item]
            )
        )
        said: list[Caption] = []
        for number in range(6):
            engine.put(Request(number, None))
            while len(said) <= number:
                said += engine.poll(1.0)
        engine.close()
    assert [caption.reason for caption in said[:4]] == [""] * 4
    assert {caption.reason for caption in said[4:]} == {"server: its model changed from one to two"}
    assert all(caption.transient for caption in said[4:])  # its shard fails, and is tried again


@pytest.mark.slow
def test_a_model_that_changes_stops_its_shard(shard: Path, tmp_path: Path) -> None:
    texts = {f"k{n}": f"A picture, number {n}." for n in range(40)}
    captions = column(tmp_path / "captions", texts)
    with serving(lambda number, text: (200, "yes", "one" if number < 20 else "two")) as (url, _):
        done = command(
            "hpc.launch", "configs/generate/supports.yaml", f"runs={tmp_path}", "name=changed",
            f"data.shards=[{shard}]", "formats.supports.text='Statement: {each} Is it so?'",
            "data.columns.each.run=null", f"data.columns.each.folder={captions['folder']}",
            "data.columns.each.field=caption", f"writer.endpoint={url}", "writer.window=1", "map.min_free_gb=0",
            "map.attempts=1",
        )  # fmt: skip
        assert done.returncode == Exit.SOME_FAILED, done.stdout + done.stderr
        assert "changed from one to two" in done.stdout and "1 failed" in done.stdout, done.stdout


def test_refusals_and_other_languages_are_counted(shard: Path, tmp_path: Path) -> None:
    """Only what was asked for counts as an answer; a refusal in words is none, and 400 is a refusal."""
    said = {
        "a": "Yes.", "b": "I'm sorry, I can't help with that.", "c": "Oui.", "d": "はい", "e": "Нет", "f": "Nein!",
        "g": "**No**, it is not.", "h": "Ja, dat klopt", "i": "不确定", "k": "UNSURE",
        "n": "No sé", "o": "No es correcto.",
    }  # fmt: skip
    texts = {key: f"caption {key}" for key in [*said, "l", "m"]} | {"m": "  "}

    def says(number: int, text: str) -> tuple[int, str, str]:
        key = text.partition("Statement: caption ")[2][:1]
        return (200, said[key], "judge") if key in said else (400, "I will not look at this", "judge")

    with serving(says) as (url, _):
        rows = asked(
            shipped(
                "generate/supports", url, shard, each=column(tmp_path / "c", texts), other=column(tmp_path / "o", texts)
            )
        )
    found = account(rows)
    assert {row["key"]: row["verdict"] for row in found.rows} == {"a": "yes", "g": "no", "k": "unsure"}
    assert found.account == {
        "asked": 14, "unparsed": 9, "refused": 1, "unanswered": 0, "empty": 1, "truncated": 0
    }  # fmt: skip
    assert rows["d"].values["caption"] == "はい"  # kept, for another parser


def test_texts_of_any_script_reach_the_judge_whole(shard: Path, tmp_path: Path) -> None:
    texts = {
        "a": "赤い円。緑の星。",
        "b": "Ένας κύκλος – “μπλε”.",
        "c": "👩‍👩‍👧 on a bench",
        "d": "e\u0301te\u0301",
        "e": "قطة سوداء",
    }
    with serving(lambda number, text: (200, "yes", "judge")) as (url, seen):
        rows = asked(
            shipped(
                "generate/supports", url, shard, each=column(tmp_path / "c", texts), other=column(tmp_path / "o", texts)
            )
        )
    assert all(row.values["verdict"] == "yes" for row in rows.values())
    for text in texts.values():
        assert any(f"Statement: {text}\n" in asked for asked in seen)
    columns = {"c": column(tmp_path / "x", texts)}
    tree = {"data": {"shards": [str(shard)], "columns": columns}, "lists": {"s": "c"}}
    exploded = ExplodeOperator(configs.structured(ExplodeConfig, tree, "t"))
    items = [item for item in exploded.read(exploded.plan()[0]) if isinstance(item, Item)]
    assert [(item.key, item.payload["s"]) for item in items][:2] == [("a#0", "赤い円。"), ("a#1", "緑の星。")]
    assert len(items) == 6


def test_lists_that_do_not_belong_together_are_a_row_of_their_own(shard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "q"
    folder.mkdir()
    rows = {"key": ["a", "b", "c", "d"], "q": [["1", "2"], ["1"], [], None], "r": [["x", "y"], ["x", "y"], [], None]}
    pq.write_table(pa.table(rows), folder / "0.parquet")
    columns = {name: {"folder": str(folder), "field": name} for name in ("q", "r")}
    tree = {
        "data": {"shards": [str(shard)], "columns": columns},
        "lists": {"question": "q", "answer": "r"},
        "drop": ["2"],
    }
    operator = ExplodeOperator(configs.structured(ExplodeConfig, tree, "t"))
    items = [item for item in operator.read(operator.plan()[0]) if isinstance(item, Item)]
    made = operator.apply(items)
    assert [(row.key, row.reason) for row in made] == [("a#0", ""), ("b#0", "lists: of different lengths")]
    assert made[0].values["answer"] == "x" and [item.index for item in items] == [0, 1]


def test_a_captioner_that_lacks_keys_loses_no_battle_unseen(shard: Path, tmp_path: Path) -> None:
    """Where one side has no caption, there is no battle, and the row says so; all else ties."""
    ours, theirs = {"a": "x", "b": "y", "c": "", "d": "z"}, {"a": "x", "b": "y", "c": "w"}
    with serving(lambda number, text: (200, "Both say the same.\ntie", "judge")) as (url, _):
        rows = asked(
            shipped(
                "systems/caparena", url, shard, ours=column(tmp_path / "a", ours), theirs=column(tmp_path / "b", theirs)
            )
        )
    found = account(rows)
    result = battles.compute(found)
    assert (result.score.value, result.ties, result.first, found.empty) == (0.0, 2, None, 2)
    assert (result.score.low, result.score.high) == (0.0, 0.0)


def test_numbers_that_are_not_defined_say_so(tmp_path: Path) -> None:
    everything_unsure = [{"shard": "0", "key": f"k#{n}", "verdict": "unsure"} for n in range(3)]
    assert hallucinated.compute(judged.Judged(tmp_path, everything_unsure, 3)).rate is None
