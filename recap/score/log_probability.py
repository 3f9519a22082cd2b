"""How likely a captioner would have written a text of an image: the mean log-probability of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.engine.settings import PAPER_PROMPT, CaptionerConfig
from recap.model_files import model_folder, model_identity
from recap.score.model_folder import check_precision, config_of
from recap.score.scorer import IMAGE, TEXTS, ScoreInput, text_field
from recap.score.settings import LogProbability

if TYPE_CHECKING:
    import torch

_TEXTS_PER_PASS = 8


class LogProbabilityScorer:
    """See recap.score.scorer.Scorer. The mean is over the tokens of the text and the end token, so that minus the value
    is the loss of a first training step on this text. An image's features are computed once for all texts of its
    row."""

    needs = frozenset({IMAGE, TEXTS})

    def __init__(self, name: str, config: LogProbability, texts: Sequence[str]) -> None:
        self.name, self.config, self._key = name, config, f"scorers.logprob.{name}"
        check_precision(config.precision, self._key)
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = []
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"tokens_{name}", text), pa.int32())]
            self.fields += [(text_field(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        key = f"{self._key}.model"
        try:
            made = model_identity(self.config.model)
        except FileNotFoundError as error:
            raise UserError(f"config: `{key}`: {str(error).replace('captioner.model', key)}") from error
        if (kind := config_of(str(model_folder(self.config.model)), key).get("model_type")) != "llava":
            raise UserError(f"config: `{key}`: {self.config.model} is a {kind}; known here are LLaVA checkpoints.")
        return {"model": made}

    def describe(self) -> str:
        return f"log-probability of texts by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from recap.engine.checkpoint import open_checkpoint

        prompt, template = self.config.prompt or PAPER_PROMPT, self.config.template
        self._opened = open_checkpoint(CaptionerConfig(model=self.config.model, prompt=prompt, template=template))
        self._prompt = self._opened.book.prompt("").ids
        context = self._opened.config.get_text_config().max_position_embeddings
        self._room = context - len(self._prompt) - 1
        if self._room < 1:
            raise UserError(
                f"config: `{self._key}.prompt`: with its image it has {len(self._prompt):,} tokens, and the model "
                f"reads {context:,}. Shorten it."
            )
        self._dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        made = AutoModelForImageTextToText.from_pretrained(self._opened.folder, dtype=self._dtype)
        self._model, self._device = made.to(device).eval(), torch.device(device)
        self.geometries = [self._opened.geometry]

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        import torch

        shown = [at for at, row in enumerate(rows) if row.picture and row.texts]
        of_row = [(at, name) for at in shown for name in rows[at].texts]
        found: list[dict[str, Any]] = [{} for _ in rows]
        if not of_row:
            return found
        answers, cut = self._answers([rows[at].texts[name] for at, name in of_row])
        order = sorted(range(len(of_row)), key=lambda one: len(answers[one]))
        with torch.inference_mode():
            seen = dict(zip(shown, self._image_features([rows[at] for at in shown]), strict=True))
            for start in range(0, len(order), _TEXTS_PER_PASS):
                part = order[start : start + _TEXTS_PER_PASS]
                means = self._means([seen[of_row[one][0]] for one in part], [answers[one] for one in part])
                for one, mean in zip(part, means, strict=True):
                    at, name = of_row[one]
                    found[at][text_field(self.name, name)] = mean
                    found[at][text_field(f"tokens_{self.name}", name)] = len(answers[one])
                    found[at][text_field(f"cut_{self.name}", name)] = cut[one]
        return found

    def _answers(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """(token ids of each text with the end token behind them, whether each was cut to what the context holds)"""
        ids = self._opened.tokenizer([" ".join(text.split()) for text in texts], add_special_tokens=False)["input_ids"]
        return [[*one[: self._room], self._opened.eos[0]] for one in ids], [len(one) > self._room for one in ids]

    def _image_features(self, rows: Sequence[ScoreInput]) -> list[torch.Tensor]:
        """The captioner's features of each row's image, [P, D]: P image tokens."""
        import torch

        squares = np.stack([row.picture.squares[self._opened.geometry] for row in rows if row.picture])
        pixels = self._opened.normalise(torch.from_numpy(squares).to(self._device), self._dtype)
        return list(self._model.get_image_features(pixel_values=pixels).pooler_output)

    def _means(self, seen: Sequence[torch.Tensor], answers: Sequence[list[int]]) -> list[float]:
        """Mean log-probability of each answer's token ids, given the prompt with the image's features [P, D]."""
        import torch

        longest, start = max(map(len, answers)), len(self._prompt)
        ids = torch.tensor([self._prompt + one + [one[-1]] * (longest - len(one)) for one in answers])
        mask = torch.tensor([[1] * (start + len(one)) + [0] * (longest - len(one)) for one in answers])
        ids, mask = ids.to(self._device), mask.to(self._device)
        embedded = self._model.get_input_embeddings()(ids)
        places = (ids == self._opened.book.image_token_id)[:, :, None].expand_as(embedded)
        embedded = embedded.masked_scatter(places, torch.stack(list(seen)).to(embedded.dtype))
        states = self._model.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        logits = self._model.lm_head(states[:, start - 1 : -1]).double().log_softmax(-1)
        each = logits.gather(-1, ids[:, start:, None])[:, :, 0] * mask[:, start:]
        return (each.sum(1) / mask[:, start:].sum(1)).tolist()
