"""How near captions are to human references: BLEU-4, ROUGE-L and CIDEr, by COCO's own code (pycocoevalcap).

COCO's tokenizer needs Java; here texts are put in lower case and cut at everything but letters, digits and apostrophes,
so that figures compare with each other, not with published ones.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence

from hpc.base.errors import UserError


def plain(text: str) -> str:
    """Words as the scores see them.

    >>> plain("A red, white-edged flag.")
    'a red white edged flag'
    """
    return " ".join(re.findall(r"[\w']+", text.lower()))


def scores(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """BLEU-4, ROUGE-L and CIDEr over all keys that have references; a missing caption counts as empty."""
    try:
        coco = {name: importlib.import_module(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "cider", "rouge")}
    except ImportError as error:
        raise UserError("evaluate: pycocoevalcap is not installed. pip install pycocoevalcap") from error
    made = {key: [plain(captions.get(key, ""))] for key in references}
    wanted = {key: [plain(text) for text in texts] for key, texts in references.items()}
    bleu, _ = coco["bleu"].Bleu(4).compute_score(wanted, made, verbose=0)
    rouge, _ = coco["rouge"].Rouge().compute_score(wanted, made)
    cider, _ = coco["cider"].Cider().compute_score(wanted, made)
    return {"BLEU-4": float(bleu[3]), "ROUGE-L": float(rouge), "CIDEr": float(cider)}
