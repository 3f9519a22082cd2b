"""Trains a tokenizer for CLIP on one's own texts.

    python -m recap.clip.make_tokenizer OUT --shards /data/tars --member txt
    python -m recap.clip.make_tokenizer OUT --shards /data/tars --run runs/recap --field caption
    python -m recap.clip.make_tokenizer OUT --texts captions.txt                        (one a line)

OUT becomes model.tokenizer of a CLIP training. --architecture recap: WordPiece with BERT's special tokens, lower case;
hf: byte-level BPE, with <|startoftext|> and <|endoftext|>. --token adds tokens of sources (text.prefix).
The first --samples texts are read, in the order of the shards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hpc.base.errors import Exit, Parser, UserError
from hpc.operator import Damage
from recap.data.blocks import BLOCK
from recap.data.column import ColumnConfig
from recap.data.columns import members_of, open_column
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import samples_of

SMALLEST = 300  # the smallest vocabulary: bytes, special tokens, some words


def train(texts: Iterator[str], architecture: str, vocabulary: int, tokens: Sequence[str] = ()) -> Any:
    """A fast tokenizer of transformers with at most `vocabulary` tokens, trained on texts. tokens: additional ones."""
    from transformers import PreTrainedTokenizerFast

    made, trainer, named = (_word_pieces if architecture == "recap" else _byte_pairs)(vocabulary, list(tokens))
    made.train_from_iterator(texts, trainer)
    first, last = (named[kind] for kind in (("cls_token", "sep_token") if "cls_token" in named else _ENDS))
    marks = [(token, made.token_to_id(token)) for token in (first, last)]
    made.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


_ENDS = ("bos_token", "eos_token")


def _word_pieces(vocabulary: int, tokens: list[str]) -> tuple[Tokenizer, Any, dict[str, str]]:
    """BERT's WordPiece with [PAD] as token 0, as Recap-CLIP has it."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tokens]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    kinds = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return made, trainer, dict(zip(kinds, special[: len(kinds)], strict=True))


def _byte_pairs(vocabulary: int, tokens: list[str]) -> tuple[Tokenizer, Any, dict[str, str]]:
    """Byte-level BPE, in which no word is unknown, with CLIP's special tokens. The end token's id is not 2, for which
    transformers would pool otherwise (see recap.clip.tokenizer_files.OLD_RULE)."""
    made = Tokenizer(models.BPE())
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|startoftext|>", *tokens, "<|unused|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    named = {"pad_token": special[0], "bos_token": special[1], "eos_token": special[-1], "unk_token": special[-1]}
    return made, trainer, named


def column_texts(shards: list[str], column: ColumnConfig) -> Iterator[str]:
    """The texts of any column of tars."""
    made, given = open_column("text", column), list_shards(DataConfig(shards=shards))
    made.check(given)
    wanted = Wanted(members=members_of([made]))
    for shard in given:
        samples = [sample for sample in samples_of(shard, wanted) if not isinstance(sample, Damage)]
        for start in range(0, len(samples), BLOCK):
            part = samples[start : start + BLOCK]
            found = made.read(shard, start // BLOCK, [s.key for s in part], [s.members for s in part])
            yield from (text for text in found.values if text)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer: {path} cannot be read: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, help="file of texts, one a line")
    parser.add_argument("--shards", nargs="+", default=[], help="tars, as in data.shards")
    parser.add_argument("--member", help="member that holds the text")
    parser.add_argument("--run", help="run whose column is the text")
    parser.add_argument("--column", help="folder of <shard>.parquet whose field is the text")
    parser.add_argument("--field")
    parser.add_argument("--architecture", choices=["recap", "hf"], default="recap")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--samples", type=int, default=1_000_000, help="texts that are read at most")
    parser.add_argument("--token", action="append", default=[], help="a token of its own, e.g. [ALT]")
    args = parser.parse_args(arguments)
    try:
        sys.stdout.write(_made(args))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return Exit.USAGE
    return Exit.COMPLETE


def _made(args: argparse.Namespace) -> str:
    if bool(args.texts) == bool(args.shards):
        raise UserError("tokenizer: write --texts FILE, or --shards and where their texts are (--member txt).")
    if args.vocabulary < SMALLEST:
        raise UserError(f"tokenizer: --vocabulary {args.vocabulary}: write at least {SMALLEST}.")
    member = args.member or ("txt" if not args.run and not args.column else None)
    column = ColumnConfig(run=args.run, folder=args.column, member=member, field=args.field)
    texts = islice(_lines(args.texts) if args.texts else column_texts(args.shards, column), args.samples)
    first = next(texts, None)
    if first is None:
        raise UserError("tokenizer: there is no text in what was named.")
    made = train(chain([first], texts), args.architecture, args.vocabulary, args.token)
    made.save_pretrained(args.out)
    return (
        f"{len(made):,} tokens in {args.out}. A CLIP reads it by model.tokenizer={args.out} "
        f"model.architecture={args.architecture} model.vocabulary={len(made)}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
