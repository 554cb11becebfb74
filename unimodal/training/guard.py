"""Watches for steps whose numbers were not finite. The step itself has left the state as it was; this tells and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from unimodal.errors import DivergedError
from unimodal.training.step import SPIKE

BEHIND = 2  # steps that are dispatched before one is looked at, so that the device need not wait for the host
_MOST_IDS = 8  # named in one line


class _Step(NamedTuple):
    number: int  # counted from 1
    metrics: Mapping[str, Mapping[str, Any]]  # by task, still on the device
    ids: Mapping[str, Any]  # sequences of strings


class Guard:
    """Looks at every step once, in order, some steps after it was dispatched.

    All processes see the same numbers at the same step, so they decide alike. `limit` bad steps in a row are one too
    many: then `diverged` is the error to end the run with. `parameters`: see `Program.parameter_names`. `tell(text)` is
    given a line for each bad step, and `record(step, metrics)` what the tasks logged at it.
    """

    def __init__(
        self,
        limit: int,
        parameters: Sequence[str],
        tell: Callable[[str], None],
        record: Callable[[int, Mapping[str, Mapping[str, Any]]], object],
    ) -> None:
        self.in_a_row = 0
        self.diverged: DivergedError | None = None
        self._limit, self._parameters, self._tell, self._record = limit, parameters, tell, record
        self._waiting: deque[_Step] = deque()

    def watch(self, step: int, metrics: Mapping[str, Mapping[str, Any]], ids: Mapping[str, Any]) -> None:
        """Step number `step` (counted from 1) is dispatched. ids: of each task's examples, where they are known."""
        self._waiting.append(_Step(step, metrics, ids))

    def look(self, until: int) -> None:
        """Look at all steps up to number `until`, waiting for them if need be."""
        while self._waiting and self._waiting[0].number <= until and self.diverged is None:
            self._judge(self._waiting.popleft())

    def explain(self, why: str | None) -> None:
        """Add what was found out about the batch at hand to the error that the run ends with."""
        if self.diverged is not None and why is not None:
            self.diverged = DivergedError(f"{self.diverged}; the batch at hand once more: {why}")

    def _judge(self, step: _Step) -> None:
        bad = jax.device_get({name: values["bad"] for name, values in step.metrics.items()})
        bad = {name: int(code) for name, code in bad.items() if code}
        sick = any(code != SPIKE for code in bad.values())
        self.in_a_row = self.in_a_row + 1 if sick else 0
        if not bad:
            return
        what = "; ".join(f"{name}: {self._what(code)}{_listed(step.ids.get(name))}" for name, code in bad.items())
        count = f" ({self.in_a_row} in a row)" if sick else ""
        self._tell(f"step {step.number} changed nothing: {what}{count}")
        self._record(step.number, step.metrics)
        if self.in_a_row >= self._limit:
            self.diverged = DivergedError(
                f"{self.in_a_row} steps in a row had numbers that are not finite, the last of them step {step.number} "
                f"({what}); the last checkpoint is as it was before them: start again from it with a lower learning "
                f"rate, or without the data at fault"
            )

    def _what(self, code: int) -> str:
        if code == SPIKE:
            return "the loss or the gradient leapt far above what it was"
        if code == 1:
            return "the loss is not finite"
        if code - 2 < len(self._parameters):
            return f"the gradient is not finite, that of {self._parameters[code - 2]} first"
        return "the gradient is so large that its norm is not finite"


def _listed(ids: Any) -> str:
    if ids is None or not len(ids):
        return ""
    more = f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else ""
    return f", of examples {', '.join(map(str, ids[:_MOST_IDS]))}{more}"
