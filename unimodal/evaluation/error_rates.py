"""Word and character error rates of transcripts, counted by `jiwer` over whole sets."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import numpy as np
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


def character_edits(reference: str, hypothesis: str) -> tuple[int, int]:
    """Edits between two transcripts, and the characters of the first: summed over a set, they make its error rate."""
    said, heard = reference.strip(), hypothesis.strip()  # as jiwer does
    return Levenshtein.distance(said, heard), len(said)


# Training transcripts that are all compared with each other, which takes minutes, and distances that are held at once.
_COMPARED, _HELD = 10_000, 1 << 20


def constant_answer(train: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Character and word error rate of giving every recording the same answer: the training transcript that is
    nearest to all the others, or silence (1.0) where that is better. What one reaches without listening. NaN where no
    reference has a word.

    Of more than 10,000 training transcripts, the nearest is sought among 10,000 of them, always the same.
    """
    if not any(text.split() for text in references):
        return float("nan"), float("nan")
    spoken = [text for text in train if text.split()]
    if not spoken:
        return 1.0, 1.0
    if len(spoken) > _COMPARED:
        chosen = np.random.default_rng(0).permutation(len(spoken))[:_COMPARED]
        spoken = [spoken[i] for i in np.sort(chosen)]
    rows, far = max(1, _HELD // len(spoken)), []
    for start in range(0, len(spoken), rows):
        # Not through jiwer, which takes the time to line up every pair.
        found = cdist(spoken[start : start + rows], spoken, scorer=Levenshtein.distance, workers=-1)
        far.append(found.sum(axis=1, dtype=np.int64))
    guess = spoken[int(np.concatenate(far).argmin())]
    rates = error_rates(references, [guess] * len(references))
    return min(1.0, rates["character_error_rate"]), min(1.0, rates["word_error_rate"])
