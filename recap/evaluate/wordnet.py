"""Base forms and synonyms of words from WordNet 3's dictionary files (Debian: wordnet-base, in /usr/share/wordnet)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hpc.base.errors import UserError

_PARTS = ("noun", "verb", "adj", "adv")
_ENDINGS = {  # morphy(7WN)
    "noun": ("s ", "ses s", "ves f", "xes x", "zes z", "ches ch", "shes sh", "men man", "ies y"),
    "verb": ("s ", "ies y", "es e", "es ", "ed e", "ed ", "ing e", "ing "),
    "adj": ("er ", "est ", "er e", "est e"),
    "adv": (),
}


class WordNet:
    """Reads index.*, data.* and *.exc of a folder. UserError where one of them is not there."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, dict[str, list[int]]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        self._data: dict[str, bytes] = {}
        for part in _PARTS:
            try:
                self._data[part] = (folder / f"data.{part}").read_bytes()
                self._places[part] = dict(_entry(line) for line in _lines(folder / f"index.{part}"))
                odd = (line.split() for line in _lines(folder / f"{part}.exc"))
            except (OSError, ValueError, IndexError) as error:
                raise UserError(
                    f"evaluate: {folder} does not hold WordNet's files ({error}). Debian: apt-get install "
                    "wordnet-base, then /usr/share/wordnet."
                ) from error
            self._exceptions[part] = {word: forms for word, *forms in odd}
        self.synonyms = lru_cache(maxsize=1 << 16)(self._synonyms)
        self.basic = lru_cache(maxsize=1 << 16)(self._basic)

    def _forms(self, word: str, part: str) -> list[str]:
        """The words that a word may be a form of, itself first."""
        endings = (ending.partition(" ") for ending in _ENDINGS[part])
        cut = [word[: -len(end)] + new for end, _, new in endings if word.endswith(end)]
        found = self._exceptions[part].get(word) or [word, *cut]
        return [form for form in dict.fromkeys(found) if form in self._places[part]]

    def _basic(self, word: str, part: str) -> str:
        """A word's base form: the shortest known one, as NLTK's lemmatizer chooses; the word itself where none is
        known."""
        forms = self._forms(word.replace(" ", "_"), part)
        return min(forms, key=len).replace("_", " ") if forms else word

    def _synonyms(self, word: str) -> frozenset[str]:
        """All words of all senses of a word, in any part of speech; words of several parts have _ between them."""
        word = word.lower().replace(" ", "_")
        return frozenset(
            name
            for part in _PARTS
            for form in self._forms(word, part)
            for place in self._places[part][form]
            for name in self._words(part, place)
        )

    def _words(self, part: str, place: int) -> list[str]:
        data = self._data[part]
        fields = data[place : data.index(b"\n", place)].decode("ascii", "replace").split()
        return [fields[4 + 2 * at].partition("(")[0].lower() for at in range(int(fields[3], 16))]


def _lines(path: Path) -> list[str]:
    """A file's lines without the licence at its top, whose lines begin with blanks."""
    return [line for line in path.read_text("ascii", "replace").splitlines() if line and line[0] != " "]


def _entry(line: str) -> tuple[str, list[int]]:
    fields = line.split()
    return fields[0], [int(place) for place in fields[-int(fields[2]) :]]
