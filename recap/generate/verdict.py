"""Reads a judge's verdict, one of some given words, from a free-form answer. Torch-free.

A word counts where it is used as an answer: alone between punctuation marks ("No, the hat is red"), or in an English
clause that says nothing else ("I'd say no", "the second one is better", "no it is not"). A word that only begins
another clause does not count, in any language: "No sé", "no idea", "First, I look at the colours". Where the given
words are not English, only words that stand alone count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_THOUGHTS = re.compile(r"^.*</think>", re.I | re.S)
_SENTENCE = re.compile(r"[.!?。！？…]+(?=\W|$)|\n+")
_CLAUSE = re.compile(r"([,;:()\[\]{}=、，；：]|\s[-–—]+\s|[–—])")
_QUOTED = re.compile(r"“[^”]*”|\"[^\"\n]*\"|«[^»]*»|「[^」]*」")
_TOKEN = re.compile(r"\x00\d+\x00|[^\W_]+(?:['’][^\W_]+)*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ANSWERS = {"yes", "no", "true", "false", "unsure", "uncertain", "unclear", "tie", "correct", "incorrect"}
"""Words that can only be an answer, so that a sentence may follow without a comma ("no it is not"). Others, such as
"first", may also be part of the sentence."""
# Words that begin the sentence after such an answer.
_STARTERS = _words(
    """
    it it's its this that that's the there there's these those they I i'm i'd we you because since as for but all
    both about not
    """
)
# Words that may come before and after the verdict in a clause that says nothing else.
_BEFORE = _words(
    """
    so thus therefore hence overall and then well okay ok my our the final answer answer's verdict judgment
    judgement conclusion response winner choice result decision it it's its this that that's i i'd i'm we we'd
    would say think believe feel am be is are was must should has have to a an as better best caption one
    preferred preference prefer statement claim description text option candidate clearly probably definitely
    certainly most likely quite rather can could will say go going with choose pick select call still just simply
    """
)
_AFTER = _words(
    """
    caption one description option text candidate wins win is are the it it's this that that's i a an better best
    more preferred preferable superior accurate true right correct statement claim of in image picture photo for
    about all all's by far clearly here indeed overall as well too to me between both them two captions certain
    sure whether so winner think believe say answer my
    """
)
# Frequent English words, and frequent words of other languages in which "no" begins a sentence, or of languages like
# them. They tell the language of a sentence.
_ENGLISH = _words(
    """
    the is it this that there are i you they we of and to not because has have does do with for be was were isn't
    doesn't it's that's but only both all its these those which than would at from
    """
)
_FOREIGN = _words(
    """
    es el la los las lo que se de del un una por para con muy pero este esta hay yo tengo puedo creo le les et une
    pas je ne sais c'est n'est il ce cette di che non sono della nel ist nicht das der und ein eine ich em uma na
    da os nao isso het een dat niet ik ze jest po od som det ikke er si su al molt
    """
)
_OTHERS = _words("si oui non ja nein nee sim nao tak nie hai da net evet ano igen")
"""Words of other languages: where one of them is among the choices, answers are not expected in English."""


class Verdicts:
    """Finds one of `choices` in answers. ValueError where they are not two different words or more."""

    def __init__(self, choices: Sequence[str]) -> None:
        self._choices = list(choices)
        self._lower = [choice.lower() for choice in choices]
        if len(set(self._lower)) < max(2, len(choices)) or not all(choice.strip() for choice in choices):
            raise ValueError(f"parse.verdict = {list(choices)}: write two different words or more")
        longest_first = sorted(choices, key=len, reverse=True)
        # A single letter is a word of many sentences: it has to be written as it was asked for.
        parts = [re.escape(word) if len(word) == 1 else f"(?i:{re.escape(word)})" for word in longest_first]
        self._word = re.compile(rf"(?<![\w-])(?:{'|'.join(parts)})(?!\w|-\w)")
        self._english = all(choice.isascii() and choice not in _OTHERS for choice in self._lower)

    def of(self, answer: str) -> str | None:
        """The choice that the answer gives; None where there is none, or where it is not clear which.

        It is the last line, where that line is nothing but a choice; or the first word of the answer; or the only
        choice in the whole answer; or the only one in its last line.

        >>> verdicts = Verdicts(["yes", "no", "unsure"])
        >>> [verdicts.of(a) for a in ("**No**, it is red.", "I'd say yes", "No sé", "yes or no?", "Yes.\\nNo.")]
        ['no', 'yes', None, None, None]
        """
        text = _THOUGHTS.sub("", answer).replace("\0", " ").strip()
        if (bare := text.strip(" \t\n.*_`\"'!()[]").lower()) in self._lower:
            return self._choices[self._lower.index(bare)]
        text = self._word.sub(lambda found: f" \0{self._lower.index(found[0].lower())}\0 ", text)
        text = _QUOTED.sub(lambda quoted: quoted[0] if len(_TOKEN.findall(quoted[0])) == 1 else " ", text)
        lines = [self._answers_in(line) for line in text.splitlines() if line.strip()]
        if not lines:
            return None
        last = text.splitlines()[-1]
        if len(lines) > 1 and (final := self._alone(last)) is not None:
            first = self._alone(text.splitlines()[0])
            return self._choices[final] if first in (None, final) else None
        if lines[0] and lines[0][0][0]:
            return self._choices[lines[0][0][1]]
        for found in ({number for line in lines for _, number in line}, {number for _, number in lines[-1]}):
            if len(found) == 1:
                return self._choices[found.pop()]
        return None

    def _alone(self, line: str) -> int | None:
        """The number of the choice that a line consists of, perhaps after a label ("Verdict: no"); else None."""
        label, sign, rest = line.rpartition(":")
        tokens = _TOKEN.findall(rest if sign and len(_TOKEN.findall(label)) <= 3 else line)
        return _number(tokens[0]) if len(tokens) == 1 else None

    def _answers_in(self, line: str) -> list[tuple[bool, int]]:
        """(whether the line begins with it, number) of each choice that a sentence of the line gives as an answer."""
        found: list[tuple[bool, int]] = []
        for at, sentence in enumerate(_SENTENCE.split(line)):
            parts = _CLAUSE.split(sentence)
            clauses = [_TOKEN.findall(part) for part in parts[::2]]
            if any(len({n for n in map(_number, clause) if n is not None}) > 1 for clause in clauses):
                continue  # it lists the possible answers
            if self._english and _foreign(sentence):
                continue
            heads = [clause for clause in clauses if clause]
            for clause, mark, after in zip(clauses, [*parts[1::2], ""], [*clauses[1:], []], strict=True):
                begins = at == 0 and not found and clause is heads[0] if heads else False
                number = self._clause(clause, mark.strip(), after, begins)
                found += [(begins, number)] if number is not None else []
        return found

    def _clause(self, tokens: list[str], mark: str, after: list[str], begins: bool) -> int | None:
        """The number of the choice that a clause gives as an answer, else None.

        Args:
            tokens: the clause's words. mark: the punctuation mark that ends it. after: the words of the next clause.
            begins: whether the line begins with this clause.
        """
        if len(set(tokens)) == 1:
            tokens = tokens[:1]  # "no no no"
        places = [place for place, token in enumerate(tokens) if _number(token) is not None]
        if len(places) != 1:
            return None
        (place,) = places
        number = _number(tokens[place])
        assert number is not None
        answers = self._lower[number] in _ANSWERS
        if len(tokens) == 1:
            if answers or not self._english or mark not in (",", ":"):
                return number
            return number if mark == "," and after and after[0].lower() in ("because", "since", "as", "for") else None
        if not self._english or (mark == ":" and not answers):
            return None
        parts = (tokens[:place], tokens[place + 1 :])
        before, behind = ({word.lower().replace("’", "'") for word in part} for part in parts)
        if before <= _BEFORE and behind <= _AFTER:
            return number
        goes_on = place == 0 and ({tokens[1], tokens[1].lower().replace("’", "'")} - {"i"}) & _STARTERS
        return number if answers and begins and goes_on else None


def _number(token: str) -> int | None:
    """The number of the choice that a token was replaced by (between NULs), None for other words."""
    return int(token.strip("\0")) if token.startswith("\0") else None


def _foreign(sentence: str) -> bool:
    """Whether a sentence has more words of other languages than English ones. Words that are not ASCII count as
    such."""
    words = [word.lower().replace("’", "'") for word in _TOKEN.findall(sentence) if not word.startswith("\0")]
    english = sum(word in _ENGLISH for word in words)
    return sum(word in _FOREIGN or not word.replace("'", "").isascii() for word in words) > english
