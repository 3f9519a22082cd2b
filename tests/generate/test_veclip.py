"""VeCLIP's column from its shipped stage, by a small model of texts that is trained here to merge two texts: it keeps
the alt-text's name, and adds the colours of what can be seen, of flags that it has not met.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hpc import config as configs
from recap.generate.operator import GenerateOperator
from recap.worlds.flag_captions import colours_in
from recap.worlds.flags import sample
from recap.worlds.tars import write_tar
from tests.generate.test_generate import rows_of
from tests.support.jobs import ROOT

ROWS, STEPS, BATCH = 200, 900, 64
FORMAT = configs.read(ROOT / "configs/prompts/vecap.yaml")["formats"]["vecap"]["text"]
NAMES = [
    a + b + c for a in ("Bal", "Dor", "Kem", "Lun", "Mar", "Tor") for b in ("a", "i", "o") for c in ("via", "land")
]
ALTS = ("Flag of {}", "{} flag, free vector", "buy {} flags online, best price", "the national flag of {}")

Pair = tuple[str, str, str, str, list[str]]  # alt, syn, merged, name, colours


def pair(chance: random.Random, colours: list[str]) -> Pair:
    """What a page says, what a captioner sees, both merged; and what of it counts."""
    name = chance.choice(NAMES)
    shown = colours[0] if len(colours) == 1 else f"{', '.join(colours[:-1])} and {colours[-1]}"
    return chance.choice(ALTS).format(name), f"a flag in {shown}", f"The {shown} flag of {name}.", name, colours


def of_world(seed: int, index: int) -> Pair:
    """Of a flag of the generated world."""
    return pair(random.Random(f"{seed}/{index}"), sorted({*colours_in(sample(seed, index)[2])}))


def tokenizer(pairs: list[Pair]) -> PreTrainedTokenizerFast:
    """Words are tokens, and so is the instruction, which is the same in all prompts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, special_tokens=["<pad>", "<eos>"], show_progress=False
    )
    instruction, _, rest = FORMAT.partition("\n\n")
    core.train_from_iterator([rest.format(alt=p[0], syn=p[1]) + f" {p[2]}" for p in pairs], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    made.add_tokens([AddedToken(instruction, normalized=False)])
    return made


def train(folder: Path) -> float:
    """Write a model of 0.2 M parameters to a folder; returns its last loss."""
    chance, scenes = random.Random(0), [of_world(1, index) for index in range(1000)]
    words = tokenizer(scenes)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min((s + 1) / 50, 1.0) * (1 - s / STEPS))
    loss = torch.zeros(())
    for _ in range(STEPS):
        loss = model(**_batch([pair(chance, chance.choice(scenes)[4]) for _ in range(BATCH)], words)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return loss.item()


def _batch(pairs: list[Pair], words: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """input_ids and labels [B, L]: of the merged texts alone something is learned."""
    asked = words([FORMAT.format(alt=p[0], syn=p[1]) for p in pairs])["input_ids"]
    told = words([f" {p[2]}<eos>" for p in pairs])["input_ids"]
    width = max(len(a) + len(t) for a, t in zip(asked, told, strict=True))
    ids, labels = torch.zeros(len(pairs), width, dtype=torch.long), torch.full((len(pairs), width), -100)
    for row, (a, t) in enumerate(zip(asked, told, strict=True)):
        ids[row, : len(a) + len(t)] = torch.tensor(a + t)
        labels[row, len(a) : len(a) + len(t)] = torch.tensor(t)
    return {"input_ids": ids, "labels": labels}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # of a busy machine: three minutes of its own
@pytest.mark.usefixtures("one_thread")
def test_a_trained_model_keeps_the_name_and_adds_the_colours(tmp_path: Path) -> None:
    assert train(tmp_path / "model") < 0.3
    pairs, keys = [of_world(2, index) for index in range(ROWS)], [f"{index:08d}" for index in range(ROWS)]
    (tmp_path / "tars").mkdir()
    with (tmp_path / "tars/0.tar").open("wb") as file:
        write_tar(file, [(key, {"txt": p[0].encode()}) for key, p in zip(keys, pairs, strict=True)])
    (tmp_path / "syn").mkdir()
    pq.write_table(pa.table({"key": keys, "text": [p[1] for p in pairs]}), tmp_path / "syn/0.parquet")
    changes = [f"data.shards=[{tmp_path}/tars]", "cluster=local", f"data.columns.syn={{folder: {tmp_path}/syn}}"]
    work = configs.load(ROOT / "configs/generate/vecap.yaml", [*changes, "writer.template='{prompt}'"]).work
    work.writer.model, work.writer.threads = str(tmp_path / "model"), 1
    operator = GenerateOperator(work)
    operator.setup("cpu")
    rows = rows_of(operator)
    operator.close()
    assert {row.status for row in rows.values()} == {"ok"}
    told = [rows[key].values["caption"] for key in keys]
    right = [p[3] in text and {*p[4]} == {*colours_in(text)} for p, text in zip(pairs, told, strict=True)]
    assert sum(right) >= 0.9 * ROWS, [(p[2], t) for p, t, ok in zip(pairs, told, right, strict=True) if not ok][:5]
    assert len({(p[3], *p[4]) for p in pairs}) > 100, "names and colours meet in many ways"
