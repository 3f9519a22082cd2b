"""Licences, by the Hub's identifiers. They are what the publisher states; else the card says that none was stated."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from hpc.base.errors import UserError

# https://huggingface.co/docs/hub/repositories-licenses: any other identifier is refused by the Hub.
HUB = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0",
    "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "gemma", "unknown",
)  # fmt: skip

OPTIONS = ("--caption-licence", "--image-licence")
NOT_STATED = "not stated by who made this export"


@dataclass(frozen=True)
class Licence:
    """id: the Hub's identifier, "" where it has none. words: a name or an address, for people."""

    id: str
    words: str


def licence(text: str, option: str) -> Licence | None:
    """Read an option: an identifier of the Hub, or `other: NAME OR ADDRESS`. None for "".

    >>> licence("CC-BY-4.0", "--caption-licence")
    Licence(id='cc-by-4.0', words='cc-by-4.0')
    >>> licence("other: each image's own", "--image-licence")
    Licence(id='', words="each image's own")
    """
    found = text.strip()
    if not found:
        return None
    before, colon, words = found.partition(":")
    if colon and before.strip().lower() == "other" and words.strip():
        return Licence("", words.strip())
    if found.lower() in HUB:
        return Licence(found.lower(), found.lower())
    near = difflib.get_close_matches(found.lower(), HUB, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"export: {option} {text!r} is no identifier of the Hub (cc-by-4.0, cc0-1.0, …).{hint} "
        f"For any other licence write {option} 'other: ITS NAME OR ADDRESS'."
    )


def front_matter(*stated: Licence | None) -> dict[str, Any]:
    """The licence keys of a card's head, for everything that its files hold; {} where one licence is not stated.

    >>> front_matter(Licence("cc-by-4.0", "cc-by-4.0")), front_matter(Licence("", "My own, v2"))
    ({'license': 'cc-by-4.0'}, {'license': 'other', 'license_name': 'my-own-v2'})
    """
    if any(one is None for one in stated):
        return {}
    found = list(dict.fromkeys(one for one in stated if one))
    ids = list(dict.fromkeys(one.id or "other" for one in found))
    head: dict[str, Any] = {"license": ids[0] if len(ids) == 1 else ids}
    others = [one.words for one in found if not one.id]
    if others:
        head["license_name"] = "-and-".join(re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") for words in others)
        links = [words for words in others if re.fullmatch(r"https?://\S+", words)]
        head |= {"license_link": links[0]} if links else {}
    return head
