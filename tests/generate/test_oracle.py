"""The oracle's answers are the world's truth, and it errs as often as it is told."""

from __future__ import annotations

import functools
import io
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import Exit
from recap.engine.chat import ChatServer, NoAnswer, read_choice, user_message
from recap.generate.rating import parse_rating
from recap.worlds import emoji, flags, shape_claims, shapes
from recap.worlds.oracle import Oracle, Truths, main, serving
from recap.worlds.tars import write_tar

SAMPLES = 200


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "0.tar"
    shapes.write_shard(path, seed=3, first=0, samples=SAMPLES, side=96)
    return path


@pytest.fixture(scope="module")
def oracle(tar: Path) -> Oracle:
    return Oracle(Truths([tar]))


@functools.cache
def made(index: int) -> shapes.Sample:
    return shapes.sample(3, index, side=96)


@functools.cache
def picture(index: int) -> bytes:
    return shapes.files(made(index))["png"]


def test_tars_without_a_truth_are_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == Exit.USAGE
    assert "no sample of the tars has a truth" in capsys.readouterr().err


def ask(oracle: Oracle, model: str, text: str, image: bytes | None = None, **more: Any) -> tuple[int, str]:
    status, found = oracle.answer({"model": model, "messages": [user_message(image, text)], **more})
    return status, found["choices"][0]["message"]["content"] if status == 200 else found["error"]["message"]


def test_answers_are_the_truth_on_200_pictures(oracle: Oracle) -> None:
    for index in range(SAMPLES):
        sample, image, key = made(index), picture(index), f"{index:08d}"
        true = shapes.caption(sample.scene)
        assert ask(oracle, "oracle/caption", "Describe it.", image) == (200, true)
        assert ask(oracle, "oracle/caption", f"Tell of {key}.") == ask(oracle, "caption", f"{key}#2") == (200, true)
        wrong = true.replace(sample.scene.background, "teal").replace("background is white", "background is teal")
        assert ask(oracle, "oracle/verdict", f"Is this right? {true}", image) == (200, "yes")
        assert ask(oracle, "oracle/verdict", f"Is this right? {wrong}", image) == (200, "no")
        assert ask(oracle, "oracle/verdict", "Is this right? A fine day.", image) == (200, "unsure")
        assert ask(oracle, "oracle/rating", f"Rate 1-5. {true}", image) == (200, "Rating: 5")
        assert parse_rating(ask(oracle, "oracle/rating", "Rate 1-5. Nothing.", image)[1]) == 1
        fused = ask(oracle, "oracle/fuse", f"Merge.\nSentence 1: {sample.alt}\nSentence 2: x\n{key}")[1]
        assert sample.alt in fused and shape_claims.judge(true, sample.scene).complete and fused.startswith(true)
        group = sample.scene.groups[0]
        assert ask(oracle, "oracle/ask", "What colour has it?", image)[1] == f"The {group.kind} is {group.colour}."
        assert group.place in ask(oracle, "oracle/ask", "Where is it?", image)[1]


def test_it_errs_as_often_as_it_is_told(oracle: Oracle) -> None:
    def verdicts(model: str) -> list[tuple[int, str]]:
        return [ask(oracle, model, f"Right? {shapes.caption(made(i).scene)}", picture(i)) for i in range(SAMPLES)]

    wrong = verdicts("oracle/verdict?wrong=0.3&seed=1")
    assert 40 <= wrong.count((200, "no")) <= 80 and wrong == verdicts("oracle/verdict?wrong=0.3&seed=1")
    assert wrong != verdicts("oracle/verdict?wrong=0.3&seed=2")
    assert 5 <= verdicts("oracle/verdict?unparsed=0.1").count((200, "Hm.")) <= 40
    first, second = verdicts("oracle/verdict?errors=0.2&seed=4"), verdicts("oracle/verdict?errors=0.2&seed=4")
    assert 20 <= sum(status == 503 for status, _ in first) <= 60 and {status for status, _ in second} == {200}
    refused = Counter(status for status, _ in verdicts("oracle/verdict?refused=0.2"))
    assert set(refused) == {200, 400} and 20 <= refused[400] <= 60
    others = sum(ask(oracle, "caption?wrong=1", "x", picture(i))[1] != shapes.caption(made(i).scene) for i in range(50))
    assert others == 50


def test_what_it_does_not_know(oracle: Oracle) -> None:
    assert ask(oracle, "oracle/caption", "x", b"another") == (
        400, "neither the image nor a key in the text is of this world"
    )  # fmt: skip
    for model in ("oracle/dream", "oracle/caption?often=1", "oracle/caption?wrong=2", "oracle/caption?seed=one"):
        assert ask(oracle, model, "x")[0] == 404
    for said, right in (("Two.", "yes"), (" top  left", "no"), ("three", "no")):  # a full stop is no difference
        assert f'"{right}"' in ask(oracle, "oracle/grade", f"Right answer: two\nAnswer: {said}")[1]
    cut = oracle.answer({"model": "caption", "messages": [user_message(None, "00000000")], "max_tokens": 2})[1]
    assert cut["choices"][0]["finish_reason"] == "length" and len(cut["choices"][0]["message"]["content"].split()) == 2


def test_other_worlds(tmp_path: Path) -> None:
    with (tmp_path / "emoji.tar").open("wb") as file:
        scene, image, text = emoji.sample(0, 1)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_tar(file, [("e1", {"png": buffer.getvalue(), "json": json.dumps(emoji.truth(scene)).encode()})])
    flags.write_shard(tmp_path / "flags.tar", 0, 0, 3, alt=True)
    oracle = Oracle(Truths([tmp_path / "emoji.tar", tmp_path / "flags.tar"]))
    assert emoji.judge(ask(oracle, "caption", "e1")[1], scene)["all"]
    assert (
        ask(oracle, "verdict", f"e1: {text}") == (200, "yes") and ask(oracle, "rating", f"e1: {text}")[1] == "Rating: 5"
    )
    colours = sorted(flags.parse(flags.sample(0, 2)[2]).colours)
    assert ask(oracle, "ask", "Which colours has 00000002?")[1] == f"Its colours are {', '.join(colours)}."
    assert ask(oracle, "verdict", f"00000002 is {colours[0]}") == (200, "yes")


@pytest.fixture(scope="module")
def url(tar: Path) -> Iterator[str]:
    with serving(Truths([tar])) as (found, _):
        yield found


def test_it_speaks_the_protocol(url: str) -> None:
    server = ChatServer(url, "", 20)
    body = {"model": "oracle/caption?errors=1", "messages": [user_message(picture(5), "What is it?")]}
    assert read_choice(server.ask(json.dumps(body).encode())).text == shapes.caption(made(5).scene)
    with pytest.raises(NoAnswer, match="status 400"):
        server.ask(b"{}")
    with pytest.raises(NoAnswer, match="status 404"):
        server.ask(json.dumps(body | {"model": "gpt"}).encode())
    assert server.models() == {}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/embeddings", b"{}")
