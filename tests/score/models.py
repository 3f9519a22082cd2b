"""Tiny models with random weights, as transformers saves the large ones, and a tokenizer of the world's words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from tests.clip.models import WORDS

SIDE, LONGEST = 24, 16
_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


def bert_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: at for at, word in enumerate([*special, *dict.fromkeys(WORDS.split())])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **named)
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.save_pretrained(folder)
    return fast


def _bert(folder: Path, kind: Any, **more: Any) -> Path:
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(5)
    shape = BertConfig(**_SHAPE, vocab_size=len(tokenizer), max_position_embeddings=40, initializer_range=0.3, **more)
    kind(shape).save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    return _bert(folder, BertModel)


def sentence_encoder(folder: Path, of: Path, mode: str = "cls_token", longest: int = 6) -> Path:
    """The same in sentence-transformers' form, with its own pooling and its own limit."""
    shutil.copytree(of, folder)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {f"pooling_mode_{mode}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return folder


def classifier(folder: Path, labels: list[str]) -> Path:
    return _bert(folder, BertForSequenceClassification, id2label=dict(enumerate(labels)),
                 label2id={label: at for at, label in enumerate(labels)})  # fmt: skip


def _image_processor(folder: Path, kind: str) -> None:
    processing = {
        "image_processor_type": kind, "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3,
        "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))


def image_reward(folder: Path) -> Path:
    torch.manual_seed(6)
    shape = ViTConfig(**_SHAPE, image_size=SIDE, patch_size=8, num_labels=1, initializer_range=0.3)
    ViTForImageClassification(shape).save_pretrained(folder)
    _image_processor(folder, "ViTImageProcessor")
    return folder


def blip(folder: Path) -> Path:
    tokenizer = bert_tokenizer(folder)
    torch.manual_seed(7)
    text = _SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "encoder_hidden_size": 32}
    text |= {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    vision = _SHAPE | {"image_size": SIDE, "patch_size": 8, "initializer_range": 0.3}
    shape = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    BlipForImageTextRetrieval(shape).save_pretrained(folder)
    _image_processor(folder, "BlipImageProcessor")
    return folder
