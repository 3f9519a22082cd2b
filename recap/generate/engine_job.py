"""The base of map jobs that ask an engine, captioning and generating. Equal requests are made once, and every row gets
an outcome. Torch-free until `setup`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import FAILED, OK, SKIPPED, Item, Row
from recap.data.same_image import FIELD
from recap.engine import Caption, CaptionerConfig, Engine, Request, check, load_engine, loadable
from recap.engine.chat import TRIES
from recap.engine.formats import Said, format_name
from recap.engine.lint import lint
from recap.engine.provenance import check_served, in_words, made_by
from recap.model_files import model_folder

ALTERNATIVE: list[tuple[str, pa.DataType]] = [
    ("format", pa.string()), ("caption", pa.string()), ("tokens", pa.int32()), ("finish", pa.string())
]  # fmt: skip

FIELDS: list[tuple[str, pa.DataType]] = [
    ("sha256", pa.string()),  # of the image file's bytes, null where there is no image
    (FIELD, pa.string()),  # the same digest, under the name that it has in every column made from images
    ("text", pa.string()),  # the original text
    ("caption", pa.string()),
    ("tokens", pa.int32()),  # generated, the end token not counted
    ("finish", pa.string()),  # stop | length
    ("format", pa.string()),  # name of the prompt format, null where there is one prompt
    ("lint", pa.list_(pa.string())),  # names of what looks wrong with the caption
    ("alternatives", pa.list_(pa.struct(ALTERNATIVE))),  # the other formats' captions (captioner.formats: all)
]

REMEMBERED = 1 << 15  # answers that are kept for later rows with an equal request: those of several shards
PLACEHOLDER = "image: placeholder"  # reason for an image that `data.placeholders` names
_PERMANENT = ("image:", "text:", "prompt:")  # beginnings of reasons that lie in the input: a retry would not help


@dataclass(frozen=True, slots=True)
class RowInput:
    """An item's payload: one row as it was read.

    image: the encoded file; None where the model is shown none.
    sha256: of the image that the row is about, None where it is not known.
    text: the original text.
    note: what is odd about the row, which is asked about all the same.
    reason, detail: why the row is skipped; "" where it is not.
    texts: values of the columns that prompt formats name.
    format: name of the prompt format, where one of several is chosen.
    copied: (column, its text) where this text is taken instead of an answer.
    """

    image: bytes | None
    sha256: str | None
    text: str | None
    note: str = ""
    reason: str = ""
    detail: str = ""
    texts: Mapping[str, Said] = field(default_factory=dict)
    format: str = ""
    copied: tuple[str, str] | None = None  # name, text


class EngineJob:
    """Base of operators that ask an engine; see hpc.operator.Operator.

    Args:
        asking: the model's settings and the prompts.
        section: the config key of the model's settings, for messages.
        placeholders: sha256 of images that are skipped.
    """

    by_rule: ClassVar[frozenset[str]] = frozenset({PLACEHOLDER})

    def __init__(self, asking: CaptionerConfig, section: str, placeholders: frozenset[str] | set[str]) -> None:
        self.asking, self._section, self._placeholders = asking, section, placeholders
        try:
            check(asking)
        except UserError as error:
            raise self.config_error(error) from error
        self._needs_image = asking.sees
        forms = asking.asks().values()
        self._by_chance = asking.decoding != "greedy" or (asking.formats == "choose" and len(forms) > 1)
        self._by_chance = self._by_chance or any(form.order or form.examples for form in forms)
        self._named = sorted({column for form in asking.asks().values() for column in form.columns()})
        self._engine: Engine | None = None
        self._in_flight: dict[int, tuple[Item, Hashable]] = {}
        self._finished: list[Row] = []
        self._number = 0
        # Equal requests are made once. By what the answer depends on: rows that wait for the answer of an equal one in
        # flight, answers of earlier rows, and (status, reason) of requests that are never made again.
        self._waiting_copies: dict[Hashable, list[Item]] = {}
        self._answers: OrderedDict[Hashable, Caption] = OrderedDict()
        self._refused: dict[Hashable, tuple[str, str]] = {}

    def config_error(self, error: Exception) -> UserError:
        """An engine's error as one that names the keys of this job's config."""
        return UserError(f"config: {error}")

    # --- what a login node asks ---------------------------------------------------------------

    def check_model(self) -> None:
        """UserError where the model's small files show that it cannot be loaded or does not fit the config."""
        try:
            loadable.check(self.asking)
        except (FileNotFoundError, UserError) as error:
            raise self.config_error(error) from error

    def placeholders_digest(self) -> dict[str, str]:
        """The part of the identity that depends on the images that are skipped."""
        if not self._placeholders:
            return {}
        return {"placeholders": hashlib.sha256("\n".join(sorted(self._placeholders)).encode()).hexdigest()}

    def describe(self) -> list[tuple[str, str]]:
        asking = self.asking
        formats = f"{len(asking.prompts)} prompt format{'s' * (len(asking.prompts) != 1)}"
        asked = formats if asking.prompts else f'prompt "{asking.prompt}"'
        decoding = f"{asking.beams} beams" if asking.beams > 1 else asking.decoding
        served = asking.backend == "openai"
        precision = "" if served else f" · {asking.precision}"
        lines = [
            (self._section, f"{in_words(self.made_by())} · {asking.backend}{precision}"),
            *([("", f"{asking.backend}: {reason}")] if (reason := loadable.why(asking)) else []),
            ("", f"{asked} · {decoding}, {asking.max_tokens} tokens"),
        ]
        if told := self._ask_endpoint() if served and asking.endpoints else "":
            lines.append(("", told))
        if self._placeholders:
            lines.append(("", f"{len(self._placeholders):,} placeholder images are skipped"))
        return lines

    def _ask_endpoint(self) -> str:
        try:
            return check_served(self.asking)
        except UserError as error:
            raise self.config_error(error) from error

    def made_by(self) -> dict[str, Any]:
        return made_by(self.asking)

    def preflight(self) -> list[str]:
        """Problems on this node: model files that cannot be read, or a server to start that is not installed."""
        if self.asking.backend == "openai":
            started = self.asking.server.command
            if not started or shutil.which(started[0]):
                return []
            return [f"server: {started[0]!r} is no command on this node (its PATH: cluster.prelude, or write the path)"]
        try:
            folder = model_folder(self.asking.model)
            for path in folder.glob("*.safetensors"):
                with path.open("rb") as file:
                    file.read(1)
        except OSError as error:
            return [f"model: {error}"]
        lacking = loadable.packages(self.asking, folder)
        return [f"model: {lacking}"] if lacking else []

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None:
        self._engine = load_engine(self.asking, device)

    def want(self) -> int:
        return self._running().want()

    def put(self, item: Item) -> None:
        asked: RowInput = item.payload
        reason = PLACEHOLDER if asked.sha256 in self._placeholders else asked.reason
        if reason:
            self._finished.append(self.row(item, SKIPPED, reason, asked.detail))
            return
        if asked.copied is not None:
            self._finished.append(self.copied(item, *asked.copied))
            return
        key = self._answer_key(item)
        if key in self._refused:
            self._finished.append(self.row(item, *self._refused[key]))
        elif key in self._answers:
            self._answers.move_to_end(key)
            self._finished.append(self._answered(item, self._answers[key]))
        elif key in self._waiting_copies:
            self._waiting_copies[key].append(item)
        else:
            self._waiting_copies[key] = []
            self._number += 1
            self._in_flight[self._number] = (item, key)
            self._running().put(Request(self._number, asked.image, asked.texts, item.key))

    def _answer_key(self, item: Item) -> Hashable:
        """Everything that a row's answer depends on. Rows with equal keys have equal answers."""
        asked: RowInput = item.payload
        texts = repr([asked.texts.get(name, "") for name in self._named]).encode("utf-8", "surrogatepass")
        seen = asked.sha256 if self._needs_image else None
        return seen, hashlib.blake2b(texts, digest_size=16).digest(), item.key if self._by_chance else None

    def poll(self, timeout: float) -> list[Row]:
        rows, self._finished = self._finished, []
        if self._in_flight:
            for caption in self._running().poll(0.0 if rows else timeout):
                item, key = self._in_flight.pop(caption.id)
                rows += [self._answered(i, caption) for i in (item, *self._waiting_copies.pop(key))]
                if not caption.transient:
                    self._answers[key] = caption
                    if len(self._answers) > REMEMBERED:
                        self._answers.popitem(last=False)
        return rows

    def starved_s(self) -> float:
        """Seconds in which the engine could have done more at once, had it had more input; 0 where it does not
        count."""
        return float(getattr(self._engine, "starved_s", 0.0))

    def waiting(self) -> str:
        """What all answers are waiting for, such as a server that is down; "" where nothing blocks them."""
        return getattr(self._engine, "waiting", "")

    def longest_wait(self) -> tuple[float, str]:
        """(seconds that one sample may take until its server counts as down, the config key that sets them)"""
        if self.asking.backend != "openai":
            return 0.0, ""
        answers = self.asking.most()  # a row's answers are asked for one after another
        tries = TRIES + max(0, len(self.asking.endpoints) - 1)  # each further server is tried once
        return answers * tries * self.asking.endpoint_timeout_s, f"{self._section}.endpoint_timeout_s"

    def one_gpu(self) -> str:
        """Why an engine uses at most one GPU; "" where it splits the model over all GPUs that it sees."""
        if self.asking.backend == "vllm" or self.asking.server.command:
            return ""
        return f"{self._section}.backend={self.asking.backend} uses one (vllm, and servers that we start, use several)"

    def longest_setup(self) -> tuple[float, str]:
        """(seconds that an engine may take until it is ready, 0 where the config sets none, the config key for them)"""
        started = self.asking.server if self.asking.server.command else None
        return (started.start_s, f"{self._section}.server.start_s") if started else (0.0, "")

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        if not item.payload.reason:
            self._refused[self._answer_key(item)] = (status, reason)  # equal rows would kill the engine too
        return self.row(item, status, reason)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def next_steps(self, run: str) -> list[str]:
        return [
            f"python -m recap.report {run} --text     a few captions here (without --text: a page with the images)",
            f"python -m recap.export {run} OUT        parquet for datasets, pandas, duckdb (--webdataset: tars)",
        ]

    def _running(self) -> Engine:
        assert self._engine is not None, "setup() comes first"
        return self._engine

    # --- rows ---------------------------------------------------------------------------------

    def _answered(self, item: Item, caption: Caption) -> Row:
        """The row of a caption. Skipped where the reason lies in the input, failed where the engine could not
        answer."""
        if caption.reason:
            status = SKIPPED if caption.reason.startswith(_PERMANENT) and not caption.transient else FAILED
            return self.row(item, status, caption.reason, caption.detail, transient=caption.transient)
        return self.answer(item, caption)

    def answer(self, item: Item, caption: Caption) -> Row:
        """The row of an answer without a reason."""
        note = "; ".join(filter(None, (item.payload.note, caption.note)))
        return self.row(item, OK, note, **self.values(caption))

    def values(self, caption: Caption) -> dict[str, Any]:
        """The fields of a row that hold an answer."""
        return {
            "caption": caption.text, "tokens": caption.tokens, "finish": caption.finish,
            "format": caption.format or None,
            "lint": lint(caption.text, self.prompt(caption.format), caption.finish) or None,
            "alternatives": [self.alternative(other) for other in caption.alternatives] or None,
        }  # fmt: skip

    def alternative(self, caption: Caption) -> dict[str, Any]:
        """An entry of `alternatives`: the answer of another format, or another sample."""
        return {
            "format": caption.format, "caption": caption.text, "tokens": caption.tokens, "finish": caption.finish
        }  # fmt: skip

    def copied(self, item: Item, name: str, text: str) -> Row:
        """The row of a text that is taken from column `name` instead of an answer."""
        values: dict[str, Any] = {
            "caption": text,
            "tokens": 0,
            "finish": "copied",
            "format": item.payload.format or None,
        }
        return self.row(item, OK, f"copied: {name}", **values)

    def prompt(self, answer: str) -> str:
        """The text of the prompt format that an answer belongs to."""
        form = self.asking.asks().get(format_name(answer))
        return form.text if form else ""

    def row(
        self, item: Item, status: str, reason: str, detail: str = "", transient: bool = False, **values: Any
    ) -> Row:
        asked: RowInput = item.payload
        values |= {"sha256": asked.sha256, FIELD: asked.sha256, "text": asked.text}
        return Row(item.shard, item.index, item.key, status, reason, detail, transient, values)
