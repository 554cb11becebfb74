"""Stopping a run on a signal, in one process or in several that must stop at the same step."""

from __future__ import annotations

import os
import signal
from typing import Protocol


class Together(Protocol):
    """Several processes that stop as one: a signal may reach only one of them, but all must run the same steps."""

    def ask_to_stop(self) -> None:
        """Called in a signal handler, by whoever got the signal."""
        ...

    def should_stop(self, step: int) -> bool:
        """Asked by every process before every step; all get the same answer for the same step."""
        ...


class StopSignal:
    """SIGTERM and SIGINT end the loop after the step at hand, with a checkpoint; a second SIGINT ends it at once.

    Each is answered in the moment it comes, as the step at hand may take long.
    """

    def __init__(self, together: Together | None) -> None:
        self.wanted = False
        self._together = together

    def now(self, step: int) -> bool:
        """True if the run stops before `step`. One process stops at once, several at the step that all agreed on."""
        return self.wanted if self._together is None else self._together.should_stop(step)

    def __enter__(self) -> StopSignal:
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: leave signals to whoever is
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.wanted:
            advice = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            # Not by print: the main thread may be in the midst of one.
            os.write(2, f"stopping after this step, with a checkpoint{advice}\n".encode())
        self.wanted = True
        if self._together is not None:
            self._together.ask_to_stop()
