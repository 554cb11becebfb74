"""Tasks one after the other: which one trains at each step, what is replayed beside it, and what happens when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from unimodal.configuration import nearest
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


def in_sequence(tasks: Sequence[str], total: int, order: Sequence[str]) -> InSequence:
    """Tasks in an order, each given as NAME or NAME=STEPS; those without a number share the rest of the steps equally.

    Without an order they come as they are. Raises UsageError for what cannot be a sequence.
    """
    if len(tasks) < 2:
        raise UsageError(f"schedule='sequence' needs at least two tasks, but there is only {', '.join(tasks)}")
    given = [word.partition("=") for word in order or tasks]
    names = [name for name, _, _ in given]
    for name, equals, number in given:
        if name not in tasks:
            raise UsageError(f"sequence names {name!r}, which is none of the tasks; {nearest(name, tasks)}")
        if equals and (not number.isdecimal() or not int(number)):
            raise UsageError(f"sequence has {name}={number}, which should be a number of steps of at least 1")
    if sorted(names) != sorted(tasks):
        raise UsageError(f"sequence should name each task once, of {', '.join(tasks)}, but is {', '.join(names)}")
    said = {name: int(number) for name, _, number in given if number}
    free = [name for name in names if name not in said]
    left = total - sum(said.values())
    if left < len(free) or (left and not free):
        raise UsageError(f"sequence={', '.join(order)} does not come to the {total} steps that steps says")
    share, rest = divmod(left, len(free)) if free else (0, 0)
    counts = said | {name: share + (i < rest) for i, name in enumerate(free)}
    return InSequence(tuple(names), tuple(counts[name] for name in names))
