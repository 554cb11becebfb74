"""Which checkpoints are kept when a new one is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Keep:
    """Choice of the checkpoints that stay."""

    last: int = 2  # so many of the newest
    every: int = 0  # those whose step is a multiple of it, too; 0: none
    best: bool | None = None  # the one with the best score, too; True: the higher the better; None: none

    def chosen(self, steps: Sequence[int], scores: Mapping[int, float]) -> set[int]:
        """Choose which checkpoints at `steps` to keep. A score that is missing or no number is never the best."""
        kept = set(sorted(steps)[-self.last :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        scored = [step for step in sorted(steps) if math.isfinite(scores.get(step, math.nan))]
        if self.best is not None and scored:
            sign = 1 if self.best else -1
            kept.add(max(scored, key=lambda step: sign * scores[step]))  # the earliest of equals
        return kept


@dataclass
class Policy:
    """`Keep`, as the store asks for it."""

    keep: Keep  # what to choose by
    scores: dict[int, float] = field(default_factory=dict)  # by step; filled as checkpoints are read and written

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        kept = self.keep.chosen([each.step for each in checkpoints], self.scores)
        return [each.step in kept for each in checkpoints]
