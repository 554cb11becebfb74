"""Transcripts of speech on the host: one plain spelling, and characters as the ids that CTC predicts."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable

import numpy as np

from unimodal.errors import UsageError

UNKNOWN = "\ufffd"
"""How a character that the alphabet lacks is written: no transcript holds it, so it always counts as an error."""


_JOINERS = "\u200c\u200d"  # between letters they are part of a word's spelling, as in Persian and in Indic scripts


def spell(text: str, *, drop: str = "+", keep: str = "") -> str:
    """`text` in lower case and Unicode's NFC with single spaces, and of its signs only hyphens and apostrophes inside words.

    Marks that combine with a letter (vowel signs, accents, points) belong to it and stay. drop: characters that vanish
    without a trace (stress marks stand inside words), as characters without any extent do. keep: further signs that
    stay. Any other sign is a space. To keep stress marks: drop="", keep="+".
    """
    lower = unicodedata.normalize(
        "NFC", unicodedata.normalize("NFC", text).lower()
    )  # "İ" in lower case is two characters
    characters = [c for c in lower if c not in drop and (unicodedata.category(c) != "Cf" or c in _JOINERS or c in keep)]
    spelt = []
    for i, c in enumerate(characters):
        after = i > 0 and _of_word(characters[i - 1])
        inside = after and i < len(characters) - 1 and characters[i + 1].isalnum()
        mark = after and _of_word(c)
        stays = c.isalnum() or mark or c in keep or (c in "-'" + _JOINERS and inside)
        spelt.append("'" if c == "’" and inside else c if stays else " ")
    return " ".join("".join(spelt).split())


def _of_word(character: str) -> bool:
    """A letter, a digit, or a mark that combines with one."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def words_of(text: str) -> set[str]:
    """The words of a text in lower case, each once; see `list_of_words`."""
    return set(list_of_words(text))


def list_of_words(text: str) -> list[str]:
    """The words of a text in lower case, in order: runs of letters, digits, underscores and the marks that combine with
    them."""
    return "".join(c if _of_word(c) or c == "_" else " " for c in text.lower()).split()


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Characters by id: 0 is CTC's blank (and padding), 1 … len(characters) the characters, one more the unknown."""

    characters: str  # each once

    def __post_init__(self) -> None:
        if not self.characters:
            raise UsageError("the alphabet is empty: it needs at least one character")
        if len(set(self.characters)) < len(self.characters):
            twice = next(c for c in self.characters if self.characters.count(c) > 1)
            raise UsageError(f"the alphabet {self.characters!r} has {twice!r} twice")

    @property
    def classes(self) -> int:
        """Blank and characters: what a model tells apart."""
        return 1 + len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """int32 `[len(text)]`; a character that is not in the alphabet becomes `classes`."""
        where = {c: i + 1 for i, c in enumerate(self.characters)}
        return np.array([where.get(c, self.classes) for c in text], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; zeros are left out, and anything beyond the characters reads `UNKNOWN`."""
        return "".join(self.characters[i - 1] if i < self.classes else UNKNOWN for i in map(int, ids) if i)


def collect_alphabet(texts: Iterable[str]) -> Alphabet:
    """The alphabet of all characters in `texts`, in Unicode's order (so a space comes first)."""
    return Alphabet("".join(sorted(set().union(*texts))))
