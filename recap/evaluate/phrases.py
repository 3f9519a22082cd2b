"""Similarity of phrases by a sentence encoder, such as all-mpnet-base-v2: any that the scorer `similarity` opens.

Torch is imported when an encoder is opened.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc.base.errors import UserError


class Likeness:
    """An opened encoder. Each phrase is encoded once.

    Args:
        folder: of the model. device: cpu or cuda.

    Raises:
        UserError: the folder holds no such model.
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        from recap.score.settings import Similarity
        from recap.score.similarity import SimilarityScorer

        self._scorer = SimilarityScorer("encoder", Similarity(model=folder), ["phrase"])
        try:
            self._scorer.identity()  # raises where the folder holds no model
            self._scorer.setup(device)
        except (UserError, OSError, ValueError) as error:
            said = str(error).removeprefix("config: `scorers.similarity.encoder.model`: ")
            raise UserError(f"evaluate: --encoder {folder}: {said[:300]}") from error
        self._known: dict[str, np.ndarray] = {}

    def of(self, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
        """The cosines of N and M phrases, float64 [N, M]."""
        if new := [phrase for phrase in (*ours, *theirs) if phrase not in self._known]:
            self._known |= self._scorer.vectors(new)[0]
        return np.stack([self._known[one] for one in ours]) @ np.stack([self._known[one] for one in theirs]).T
