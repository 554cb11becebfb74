"""Tasks one after the other: which one trains at each step, what is replayed beside it, and what happens when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from unimodal.errors import UsageError
from unimodal.training.step import TrainState


@dataclass(frozen=True)
class InSequence:
    """A schedule of tasks in their order. It is a pure function of the step, so that a resumed run goes on alike."""

    names: tuple[str, ...]
    steps: tuple[int, ...]  # of each
    replay: float = 0.0  # weight of the mean loss of what is remembered of earlier tasks; 0: nothing is
    between: Callable[[str, TrainState], TrainState] | None = None  # changes the state when a task has ended

    def who(self, step: int) -> tuple[str, ...]:
        """The task that trains at a step (counted from 0), and the earlier ones that are replayed beside it."""
        place = next((i for i, end in enumerate(accumulate(self.steps)) if step < end), len(self.names) - 1)
        return (self.names[place], *(self.names[:place] if self.replay else ()))

    def weights(self) -> dict[tuple[str, ...], dict[str, float]]:
        """The weight of each loss, for all that `who` can give."""
        found = {}
        for first in (end - count for end, count in zip(accumulate(self.steps), self.steps, strict=True)):
            now, *before = names = self.who(first)
            found[tuple(names)] = {now: 1.0, **{name: self.replay / len(before) for name in before}}
        return found

    def ended(self, step: int) -> str | None:
        """The task whose last step was number `step`, counted from 1."""
        return dict(zip(accumulate(self.steps), self.names, strict=True)).get(step)


def in_sequence(names: Sequence[str], total: int, steps: Sequence[int]) -> InSequence:
    """Tasks for so many steps each (none given: equal shares of the total). Raises UsageError for what cannot be one."""
    if len(names) < 2:
        raise UsageError(f"schedule='sequence' needs at least two tasks, but there is only {', '.join(names)}")
    if not steps:
        share, rest = divmod(total, len(names))
        steps = [share + (i < rest) for i in range(len(names))]
    if len(steps) != len(names):
        raise UsageError(f"sequence has {len(steps)} numbers of steps, but there are {len(names)} tasks")
    if sum(steps) != total or min(steps) < 1:
        raise UsageError(
            f"sequence={tuple(steps)} should be steps of at least 1 each, and {total} together, as steps says; "
            f"they are {sum(steps)}"
        )
    return InSequence(tuple(names), tuple(steps))
