"""Turns: which tasks train at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm

from unimodal.errors import UsageError
from unimodal.task import Task

FINEST = 10**6  # the largest denominator of a ratio of two weights: beyond, they are the nearest such fraction


def turns(tasks: Sequence[Task], schedule: str, temperature: float = 1.0) -> Callable[[int], tuple[str, ...]]:
    """Which tasks train at each step (a pure function of the step, so that a resumed run goes on alike).

    temperature: turns are shared by weights to the power of 1/temperature, as in multilingual training (Arivazhagan 2019).
    Raises UsageError where that is beyond all numbers.
    """
    names = tuple(task.name for task in tasks)
    if schedule == "sum":
        return lambda step: names
    least = min(task.weight for task in tasks)
    try:
        share = shares([(task.weight / least) ** (1 / temperature) for task in tasks])
    except OverflowError as error:
        raise UsageError(
            f"turn_temperature={temperature} leaves tasks of small weight no turn: give a larger one, or leave these tasks out"
        ) from error
    return lambda step: (names[whose_turn(step, share)],)


def name_sets(tasks: Sequence[Task], schedule: str) -> list[tuple[str, ...]]:
    """All that `turns` can give."""
    return [tuple(task.name for task in tasks)] if schedule == "sum" else [(task.name,) for task in tasks]


def shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers that are to one another as the weights: (1, 1.4) → [5, 7]."""
    least = min(weights)
    ratios = [Fraction(weight / least).limit_denominator(FINEST) for weight in weights]
    scale = lcm(*(ratio.denominator for ratio in ratios))
    return [int(ratio * scale) for ratio in ratios]


def whose_turn(step: int, share: Sequence[int]) -> int:
    """The task, by its place in `share`, whose turn is at `step`.

    Turn n of task i is due at (n + ½) / share[i] (Webster's method); turns come in the order in which they are due,
    those due together in the order of the tasks. After sum(share) steps the order begins anew, and each task has had
    its share of turns.
    """
    step %= sum(share)
    for i, own in enumerate(share):
        # Its turns stand at ever later places: search for the one at `step`, near where an even spread would have it.
        first = max(0, step * own // sum(share) - len(share))
        last = min(own - 1, first + 2 * len(share) + 1)
        while first < last:
            middle = (first + last) // 2
            first, last = (first, middle) if _place(i, middle, share) >= step else (middle + 1, last)
        if _place(i, first, share) == step:
            return i
    raise AssertionError(f"no turn at step {step} of {share}")


def _place(i: int, n: int, share: Sequence[int]) -> int:
    """Count the turns before turn n of task i."""
    before = n
    for j, other in enumerate(share):
        if j != i:
            # Turns k of j with (k + ½) / other < (n + ½) / share[i], or = where j comes first.
            reach = (2 * n + 1) * other - share[i]
            before += max(0, reach // (2 * share[i]) + 1 if j < i else -(-reach // (2 * share[i])))
    return before
