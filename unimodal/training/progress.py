"""Progress of a run on the terminal: a live bar on a terminal, a plain line now and then elsewhere, a table at the end."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from unimodal.training.meters import Rates
from unimodal.training.metrics import verdict

_QUIET_SECONDS = 30.0  # between plain lines when nobody watches
_WINDOW_SECONDS = 30.0  # over which the live rates are taken
_WAITING = 0.1  # share of the time that is worth a word
_SMOOTHING = 0.9  # of the losses shown


@dataclass(frozen=True)
class _Interval:
    end: float  # on the clock, in seconds
    seconds: float  # of wall time
    steps: int  # of the optimizer
    tokens: int  # of all tasks
    examples: int  # of all tasks
    flops: float = 0.0  # model FLOPs, over all chips
    waited: float = 0.0  # seconds for input


class Progress:
    """The progress line of a run from `start_step` to `total_steps`; says nothing at all with `enabled=False`.

    On a terminal: a live bar with steps/s, tokens/s, examples/s, time left and each task's smoothed loss. Elsewhere: a
    plain line at the first update, then at most one in 30 seconds, and one at the end, which `close` prints.

    An interval in which a task is seen for the first time is left out of the rates: it holds a compilation.
    With several `chips`, tokens are also told per chip; with the `peak` FLOP/s of one, model FLOPs as a share of it (MFU).
    `clock` (seconds) and `console` can be given for tests.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        enabled: bool = True,
        *,
        chips: int = 1,
        peak: float | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chips, self._peak = chips, peak
        self.total_steps = total_steps
        self.step = start_step
        self._enabled = enabled
        self._console = console or Console()
        self._clock = clock
        self._last_time = clock()
        self._last_printed: float | None = None
        self._printed_step: int | None = None
        self._losses: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        self._remarks: dict[str, str] = {}
        self._window: deque[_Interval] = deque()
        self._all = _Interval(0.0, 0.0, 0, 0, 0)
        self._live: Live | None = None
        if enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._render)
            self._live.start()

    def update(
        self,
        step: int,
        losses: Mapping[str, float],
        tokens: int,
        examples: int,
        *,
        flops: float = 0.0,
        waited: float = 0.0,
        remarks: Mapping[str, str] | None = None,
    ) -> None:
        """Tell that `step` steps are done; `tokens`, `examples` and model `flops` count what was processed since the last
        update, and `waited` the seconds for input. `remarks`: a few words to stand beside a task's loss."""
        now = self._clock()
        # Compare tasks with those seen so far: a new one means that a step was compiled in this interval.
        compiled = not self._losses or any(task not in self._newest for task in losses)
        for task, loss in losses.items():
            self._smooth(task, float(loss))
        self._remarks = dict(remarks or {})
        interval = _Interval(now, now - self._last_time, step - self.step, tokens, examples, flops, waited)
        self.step = step
        self._last_time = now
        if not compiled:
            self._window.append(interval)
            # Keep one interval at least, so that steps longer than the window have a rate, too.
            while len(self._window) > 1 and self._window[0].end < now - _WINDOW_SECONDS:
                self._window.popleft()
            self._all = _sum(self._all, interval)
        if self._enabled and self._live is None:
            due = self._last_printed is None or now - self._last_printed >= _QUIET_SECONDS
            if due:
                self._print_line(now)

    def note(self, text: str) -> None:
        """Print a line above the bar, as it is: no markup."""
        if self._enabled:
            self._console.print(Text(text), soft_wrap=True)

    def rates(self) -> Rates:
        """The rates of the last 30 seconds, as shown."""
        total = _Interval(0.0, 0.0, 0, 0, 0)
        for interval in self._window:
            total = _sum(total, interval)
        return self._rates(total)

    def mean_rates(self) -> Rates:
        """The rates of the whole run so far, compilation left out."""
        return self._rates(self._all)

    def close(self) -> None:
        """End the bar, or print the last plain line; closing twice is harmless."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._enabled and self._printed_step != self.step and self._newest:
            self._print_line(self._clock())
        self._enabled = False

    def _rates(self, total: _Interval) -> Rates:
        if total.seconds <= 0:
            return Rates()
        mfu = total.flops / total.seconds / self.chips / self._peak if self._peak and total.flops else math.nan
        return Rates(
            total.steps / total.seconds,
            total.tokens / total.seconds,
            total.examples / total.seconds,
            total.waited / total.seconds,
            mfu,
        )

    def _smooth(self, task: str, loss: float) -> None:
        self._newest[task] = loss
        # Leave NaN out of the average, which would stay NaN for ever.
        if math.isfinite(loss):
            before = self._losses.get(task, loss)
            self._losses[task] = _SMOOTHING * before + (1 - _SMOOTHING) * loss

    def _shown(self, task: str) -> float:
        """The smoothed loss, but a NaN or infinity as soon as it comes: smoothing must not hide it."""
        newest = self._newest[task]
        return self._losses[task] if math.isfinite(newest) else newest

    def _remark(self, task: str) -> str:
        return f" ({self._remarks[task]})" if task in self._remarks else ""

    def _time_left(self) -> float:
        return (self.total_steps - self.step) / rate if (rate := self.rates().steps) > 0 else math.nan

    def _numbers(self) -> list[str]:
        rates = self.rates()
        each = f" ({compact(rates.tokens / self.chips)}/chip)" if self.chips > 1 else ""
        return [
            f"{compact(rates.steps)} steps/s",
            f"{compact(rates.tokens)} tokens/s{each}",
            f"{compact(rates.examples)} examples/s",
            *([f"MFU {rates.mfu:.1%}"] if math.isfinite(rates.mfu) else []),
            *([f"{rates.waiting:.0%} waiting for input"] if rates.waiting >= _WAITING else []),
        ]

    def _print_line(self, now: float) -> None:
        share = self.step / self.total_steps if self.total_steps else 1.0
        left = f"ETA {duration(self._time_left())}"
        parts = [f"step {self.step:,}/{self.total_steps:,} ({share:.0%})", *self._numbers(), left]
        losses = "  ".join(f"{task} {self._shown(task):.4g}{self._remark(task)}" for task in self._newest)
        self._console.print(Text(" | ".join([*parts, f"loss {losses}"])), soft_wrap=True)
        self._last_printed = now
        self._printed_step = self.step

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2), expand=False)
        done = ProgressBar(total=max(self.total_steps, 1), completed=self.step, width=max(10, self._console.width // 4))
        steps = Text(f"{self.step:,}/{self.total_steps:,}", style="bold")
        # The time left comes first, and whole: on a narrow terminal the line is cut at its end.
        left = Text(f"ETA {duration(self._time_left())}", style="dim", no_wrap=True)
        numbers = Text("  ".join(self._numbers()), style="dim", overflow="ellipsis", no_wrap=True)
        bar.add_row(done, steps, left, numbers)
        losses = Text(overflow="ellipsis", no_wrap=True)
        for task in self._newest:
            losses.append(f"{task} ", style="dim")
            value = self._shown(task)
            losses.append(f"{value:.4g}", style="cyan" if math.isfinite(value) else "bold red")
            losses.append(f"{self._remark(task)}   ", style="yellow")
        return Group(bar, losses) if self._newest else Group(bar, Text("compiling the first step", style="dim"))


def results_table(results: Mapping[str, Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Print task, metric, value, baseline and verdict: a table on a terminal, aligned plain text elsewhere.

    `results` maps a task to {"metric", "value", "baseline", "higher_is_better"}; other keys are ignored.
    """
    console = console or Console()
    header = ("task", "metric", "value", "baseline", "verdict")
    rows = [_result_row(task, result) for task, result in results.items()]
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        for row in [header, *rows]:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            console.print(Text(line.rstrip()), soft_wrap=True)
        return
    table = Table(*header, box=None, header_style="dim", padding=(0, 3, 0, 0))
    colours = {"better": "green", "worse": "red", "equal": "yellow", "unknown": "yellow", "failed": "red"}
    for row in rows:
        word = row[-1].split(" ")[0]
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=colours.get(word, "")))
    console.print(table)


def _result_row(task: str, result: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    value, baseline = result.get("value"), result.get("baseline")
    higher = bool(result.get("higher_is_better", True))
    direction = "higher is better" if higher else "lower is better"
    shown = ["-" if number is None else f"{number:.4g}" for number in (value, baseline)]
    return task, str(result.get("metric", "")), shown[0], shown[1], f"{verdict(value, baseline, higher)} ({direction})"


def compact(number: float) -> str:
    """Three significant digits and a letter: 12.3, 45.1k, 2.10M; "-" for NaN."""
    if not math.isfinite(number):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)}{letter}"
    return _three_digits(number)


def duration(seconds: float) -> str:
    """A time span in two units at most: 42s, 5m09s, 3h07m, 2d04h; "-" for NaN."""
    if not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _three_digits(number: float) -> str:
    size = abs(number)
    return f"{number:.0f}" if size >= 99.95 else f"{number:.1f}" if size >= 9.995 else f"{number:.2f}"


def _sum(a: _Interval, b: _Interval) -> _Interval:
    return _Interval(
        b.end,
        a.seconds + b.seconds,
        a.steps + b.steps,
        a.tokens + b.tokens,
        a.examples + b.examples,
        a.flops + b.flops,
        a.waited + b.waited,
    )
