"""Word and character error rates of transcripts, counted by `jiwer` over whole sets."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """`word_error_rate` and `character_error_rate`: substitutions, deletions and insertions of all texts together,
    over the words and the characters of all references.

    An empty reference adds what was heard in it to the insertions. Raises ValueError for lists of different lengths,
    or when no reference has a word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    # jiwer refuses empty references, where an error rate of one text would divide by zero.
    spoken = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r.split()]
    silent = [h for r, h in zip(references, hypotheses, strict=True) if not r.split()]
    if not spoken:
        raise ValueError("no reference has a word in it: error rates need at least one")
    said, heard = ([pair[i] for pair in spoken] for i in (0, 1))
    rates = {}
    for name, made, units in (
        ("word_error_rate", jiwer.process_words(said, heard), sum(len(h.split()) for h in silent)),
        ("character_error_rate", jiwer.process_characters(said, heard), sum(len(h.strip()) for h in silent)),
    ):
        errors = made.substitutions + made.deletions + made.insertions + units
        rates[name] = errors / (made.substitutions + made.deletions + made.hits)
    return rates


def constant_answer(train: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Character and word error rate of giving every recording the same answer: the training transcript that is
    nearest to all the others, or silence (1.0) where that is better. What one reaches without listening."""
    spoken = [text for text in train if text.split()]
    if not spoken:
        return 1.0, 1.0
    # Not through jiwer, which takes the time to line up every pair.
    guess = spoken[int(cdist(spoken, spoken, scorer=Levenshtein.distance).sum(axis=1).argmin())]
    rates = error_rates(references, [guess] * len(references))
    return min(1.0, rates["character_error_rate"]), min(1.0, rates["word_error_rate"])
