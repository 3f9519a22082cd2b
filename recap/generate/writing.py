"""An operator's work with an engine: requests that are equal are made once, and every row gets an outcome.

Torch-free until `setup`.
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
    (FIELD, pa.string()),  # the same, as every column of ours that is made from an image calls it
    ("text", pa.string()),  # the original text
    ("caption", pa.string()),
    ("tokens", pa.int32()),  # generated, the end token not counted
    ("finish", pa.string()),  # stop | length
    ("format", pa.string()),  # name of the prompt format, null where there is one prompt
    ("lint", pa.list_(pa.string())),  # names of what looks wrong with the caption
    ("alternatives", pa.list_(pa.struct(ALTERNATIVE))),  # the other formats' captions (captioner.formats: all)
]

REMEMBERED = 1 << 15  # answers kept for rows that ask the same: several shards' worth
PLACEHOLDER = "image: placeholder"  # of an image that `data.placeholders` names
_PERMANENT = ("image:", "text:", "prompt:")  # reasons that are the input's


@dataclass(frozen=True, slots=True)
class Asked:
    """One row as read. `note` is what is odd but does not prevent an answer, `reason` what does.

    image: the encoded file; None where none is shown. sha256: of the image that the row is about, where it is known.
    text: the original text. texts: what the columns say that formats name. format: that is asked in, where one is
    chosen. copied: a column whose text is copied in place of an answer.
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


class Writing:
    """What operators have in common that ask an engine; see hpc.operator.Operator.

    Args:
        asking: the model and what it is asked.
        section: what the config calls the model's settings.
        placeholders: digests of images that are skipped.
    """

    by_rule: ClassVar[frozenset[str]] = frozenset({PLACEHOLDER})

    def __init__(self, asking: CaptionerConfig, section: str, placeholders: frozenset[str] | set[str]) -> None:
        self.asking, self._section, self._placeholders = asking, section, placeholders
        try:
            check(asking)
        except UserError as error:
            raise self.refused(error) from error
        self._sees = asking.sees
        forms = asking.asks().values()
        self._by_chance = asking.decoding != "greedy" or (asking.formats == "choose" and len(forms) > 1)
        self._by_chance = self._by_chance or any(form.order or form.examples for form in forms)
        self._named = sorted({column for form in asking.asks().values() for column in form.columns()})
        self._engine: Engine | None = None
        self._flying: dict[int, tuple[Item, Hashable]] = {}
        self._finished: list[Row] = []
        self._number = 0
        # Rows that ask the same are answered once: those that wait for the first, and what became of earlier ones.
        self._copies: dict[Hashable, list[Item]] = {}
        self._known: OrderedDict[Hashable, Caption] = OrderedDict()
        self._refused: dict[Hashable, tuple[str, str]] = {}

    def refused(self, error: Exception) -> UserError:
        """An error in the engine's words, in the config's."""
        return UserError(f"config: {error}")

    # --- what a login node asks ---------------------------------------------------------------

    def check_model(self) -> None:
        """UserError unless the model's files can be what is wanted, as far as small files tell."""
        try:
            loadable.check(self.asking)
        except (FileNotFoundError, UserError) as error:
            raise self.refused(error) from error

    def placeholders_digest(self) -> dict[str, str]:
        """What an identity holds of the images that are skipped."""
        if not self._placeholders:
            return {}
        return {"placeholders": hashlib.sha256("\n".join(sorted(self._placeholders)).encode()).hexdigest()}

    def describe(self) -> list[tuple[str, str]]:
        asking = self.asking
        asked = f"{len(asking.prompts)} prompt formats" if asking.prompts else f'prompt "{asking.prompt}"'
        served = asking.backend == "openai"
        precision = "" if served else f" · {asking.precision}"
        lines = [
            (self._section, f"{in_words(self.made_by())} · {asking.backend}{precision}"),
            *([("", f"{asking.backend}: {reason}")] if (reason := loadable.why(asking)) else []),
            ("", f"{asked} · {asking.decoding}, {asking.max_tokens} tokens"),
        ]
        if told := self._ask_endpoint() if asking.endpoints else "":
            lines.append(("", told))
        if self._placeholders:
            lines.append(("", f"{len(self._placeholders):,} placeholder images are skipped"))
        return lines

    def _ask_endpoint(self) -> str:
        try:
            return check_served(self.asking)
        except UserError as error:
            raise self.refused(error) from error

    def made_by(self) -> dict[str, Any]:
        return made_by(self.asking)

    def preflight(self) -> list[str]:
        """The model's files can be read on this node; a server that we start is installed here."""
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
        asked: Asked = item.payload
        reason = PLACEHOLDER if asked.sha256 in self._placeholders else asked.reason
        if reason:
            self._finished.append(self.row(item, SKIPPED, reason, asked.detail))
            return
        if asked.copied is not None:
            self._finished.append(self.copied(item, *asked.copied))
            return
        same = self._same(item)
        if same in self._refused:
            self._finished.append(self.row(item, *self._refused[same]))
        elif same in self._known:
            self._known.move_to_end(same)
            self._finished.append(self._answered(item, self._known[same]))
        elif same in self._copies:
            self._copies[same].append(item)
        else:
            self._copies[same] = []
            self._number += 1
            self._flying[self._number] = (item, same)
            self._running().put(Request(self._number, asked.image, asked.texts, item.key))

    def _same(self, item: Item) -> Hashable:
        """Equal for two rows iff their answers are equal by construction: what an answer depends on."""
        asked: Asked = item.payload
        texts = repr([asked.texts.get(name, "") for name in self._named]).encode("utf-8", "surrogatepass")
        seen = asked.sha256 if self._sees else None
        return seen, hashlib.blake2b(texts, digest_size=16).digest(), item.key if self._by_chance else None

    def poll(self, timeout: float) -> list[Row]:
        rows, self._finished = self._finished, []
        if self._flying:
            for caption in self._running().poll(0.0 if rows else timeout):
                item, same = self._flying.pop(caption.id)
                rows += [self._answered(i, caption) for i in (item, *self._copies.pop(same))]
                if not caption.transient:
                    self._known[same] = caption
                    if len(self._known) > REMEMBERED:
                        self._known.popitem(last=False)
        return rows

    def starved_s(self) -> float:
        """Seconds in which the engine had less to do than it could for want of input, as far as it tells."""
        return float(getattr(self._engine, "starved_s", 0.0))

    def waiting(self) -> str:
        """What all answers wait for: a server that is away. "" where there is none."""
        return getattr(self._engine, "waiting", "")

    def longest_wait(self) -> tuple[float, str]:
        """Seconds that one sample may wait for a server before that counts as away, and the key that sets them."""
        if self.asking.backend != "openai":
            return 0.0, ""
        answers = self.asking.most()  # a row's answers are asked for one after another
        tries = TRIES + max(0, len(self.asking.endpoints) - 1)  # the others of several servers once each
        return answers * tries * self.asking.endpoint_timeout_s, f"{self._section}.endpoint_timeout_s"

    def one_gpu(self) -> str:
        """Why an engine uses one GPU at most; "" where it splits the model over all that it sees."""
        if self.asking.backend == "vllm" or self.asking.server.command:
            return ""
        return f"{self._section}.backend={self.asking.backend} uses one (vllm, and servers that we start, use several)"

    def longest_setup(self) -> tuple[float, str]:
        """Seconds that an engine may take until it is ready, as far as the config says, and the key that sets them."""
        started = self.asking.server if self.asking.server.command else None
        return (started.start_s, f"{self._section}.server.start_s") if started else (0.0, "")

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        if not item.payload.reason:
            self._refused[self._same(item)] = (status, reason)  # its copies would kill the engine too
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
        """What the input is to blame for is skipped; an engine that fails on a good row is a failure."""
        if caption.reason:
            status = SKIPPED if caption.reason.startswith(_PERMANENT) and not caption.transient else FAILED
            return self.row(item, status, caption.reason, caption.detail, transient=caption.transient)
        return self.answer(item, caption)

    def answer(self, item: Item, caption: Caption) -> Row:
        """The row of a good answer."""
        note = "; ".join(filter(None, (item.payload.note, caption.note)))
        return self.row(item, OK, note, **self.values(caption))

    def values(self, caption: Caption) -> dict[str, Any]:
        """What a row says of an answer."""
        return {
            "caption": caption.text, "tokens": caption.tokens, "finish": caption.finish,
            "format": caption.format or None,
            "lint": lint(caption.text, self.prompt(caption.format), caption.finish) or None,
            "alternatives": [self.alternative(other) for other in caption.alternatives] or None,
        }  # fmt: skip

    def alternative(self, caption: Caption) -> dict[str, Any]:
        """What a row says of another format's answer, or of another sample."""
        return {
            "format": caption.format, "caption": caption.text, "tokens": caption.tokens, "finish": caption.finish
        }  # fmt: skip

    def copied(self, item: Item, name: str, text: str) -> Row:
        """The row of a text that is copied in place of an answer."""
        values: dict[str, Any] = {
            "caption": text,
            "tokens": 0,
            "finish": "copied",
            "format": item.payload.format or None,
        }
        return self.row(item, OK, f"copied: {name}", **values)

    def prompt(self, answer: str) -> str:
        """The words of the format that an answer was asked for in."""
        form = self.asking.asks().get(format_name(answer))
        return form.text if form else ""

    def row(
        self, item: Item, status: str, reason: str, detail: str = "", transient: bool = False, **values: Any
    ) -> Row:
        asked: Asked = item.payload
        values |= {"sha256": asked.sha256, FIELD: asked.sha256, "text": asked.text}
        return Row(item.shard, item.index, item.key, status, reason, detail, transient, values)
