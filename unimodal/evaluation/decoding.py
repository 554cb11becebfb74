"""CTC's frame-by-frame probabilities → label sequences (Graves et al. 2006, §3.2)."""

from __future__ import annotations

import math

import numpy as np

_NEVER = -math.inf


def collapse(path: np.ndarray, blank: int = 0) -> list[int]:
    """The labels of one alignment `[T]`: repeats merged, then blanks left out."""
    path = np.asarray(path)
    # Merge repeats before blanks go, or "aa" across a blank would become one "a".
    first = np.concatenate([[True], path[1:] != path[:-1]]) if len(path) else np.zeros(0, bool)
    return [int(label) for label in path[first] if label != blank]


def greedy(log_probabilities_TV: np.ndarray, blank: int = 0) -> list[int]:
    """The labels of the likeliest alignment (which need not be the likeliest labels)."""
    return collapse(np.asarray(log_probabilities_TV).argmax(axis=1), blank)


def prefix_beam(
    log_probabilities_TV: np.ndarray, width: int, *, blank: int = 0, labels_per_frame: int = 0
) -> list[tuple[tuple[int, ...], float]]:
    """Label sequences, likeliest first, with the log of the summed probability of their alignments.

    Keeps the `width` likeliest prefixes after each frame, each with the probability of alignments that end in a blank
    and of those that do not (Graves 2012, §7.5.3; Hannun 2014). Exact when `width` is no less than the number of
    prefixes. labels_per_frame: extend by so many of the likeliest labels only (0: all). Raises ValueError for a width
    below 1.
    """
    if width < 1:
        raise ValueError(f"beam width must be at least 1, got {width}")
    table = np.asarray(log_probabilities_TV, np.float64)
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, _NEVER)}
    for frame in table:
        # Plain floats: reading them one by one from an array is many times slower.
        chances, labels = frame.tolist(), _likeliest(frame, blank, labels_per_frame)
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (in_blank, in_label) in beam.items():
            whole = _add(in_blank, in_label)
            last = prefix[-1] if prefix else -1
            _gain(grown, prefix, whole + chances[blank], in_label + chances[last] if prefix else _NEVER)
            for label in labels:
                # The same label again is a new one only across a blank.
                _gain(grown, (*prefix, label), _NEVER, (in_blank if label == last else whole) + chances[label])
        # Rank prefixes by all of their alignments together, not by the best one.
        best = sorted(grown.items(), key=lambda item: _add(*item[1]), reverse=True)[:width]
        beam = dict(best)
    return [(prefix, _add(*chance)) for prefix, chance in beam.items()]


def _likeliest(frame: np.ndarray, blank: int, count: int) -> list[int]:
    labels = [int(label) for label in np.argsort(-frame, kind="stable") if label != blank]
    return labels[:count] if count else labels


def _gain(table: dict[tuple[int, ...], tuple[float, float]], prefix: tuple[int, ...], blank: float, label: float):
    before = table.get(prefix)
    table[prefix] = (blank, label) if before is None else (_add(before[0], blank), _add(before[1], label))


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    # Take the larger one out of the logarithm: the other is then at most 1, and never overflows.
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))
