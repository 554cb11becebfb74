"""The progress line: true rates under a fake clock, quiet where nobody watches, alive on a terminal."""

import io
import math
from contextlib import closing

import pytest
from rich.console import Console

from unimodal.training.progress import Progress, compact, duration, results_table


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _console(terminal):
    file = io.StringIO()
    environment = {"TERM": "xterm-256color" if terminal else "dumb"}
    console = Console(file=file, force_terminal=terminal, width=160, color_system=None, _environ=environment)
    return console, file


def _run(progress, clock, steps, seconds, losses=None, tokens=1000, examples=20):
    for step in steps:
        clock.now += seconds
        progress.update(step, losses or {"gpt": 2.0}, tokens, examples)


def test_rates_leave_out_the_compiling_step():
    clock, (console, _) = Clock(), _console(False)
    progress = Progress(100, console=console, clock=clock)
    _run(progress, clock, [1], 60.0)
    assert math.isnan(progress.rates().steps)
    _run(progress, clock, [2, 3, 4], 0.5)
    for rates in (progress.rates(), progress.mean_rates()):
        assert (rates.steps, rates.tokens, rates.examples) == pytest.approx((2.0, 2000.0, 40.0))


def test_rates_leave_out_every_first_sight_of_a_task():
    clock, (console, _) = Clock(), _console(False)
    progress = Progress(100, console=console, clock=clock)
    _run(progress, clock, [1], 60.0, {"gpt": 1.0})
    _run(progress, clock, [2], 40.0, {"vit": 1.0})
    _run(progress, clock, [3, 4], 0.25, {"gpt": 1.0})
    assert progress.rates().steps == pytest.approx(4.0)


def test_several_steps_an_update_and_resume():
    clock, (console, _) = Clock(), _console(False)
    progress = Progress(100, start_step=40, console=console, clock=clock)
    _run(progress, clock, [50, 60, 70], 2.0)
    assert progress.rates().steps == pytest.approx(5.0)


def test_live_rate_follows_a_change_but_the_mean_remembers():
    clock, (console, _) = Clock(), _console(False)
    progress = Progress(10_000, console=console, clock=clock)
    _run(progress, clock, range(1, 102), 1.0)
    _run(progress, clock, range(102, 502), 0.1)
    assert progress.rates().steps == pytest.approx(10.0, rel=0.05)
    assert progress.mean_rates().steps == pytest.approx(500 / 140)


def test_quiet_without_a_terminal():
    clock, (console, file) = Clock(), _console(False)
    with closing(Progress(1000, console=console, clock=clock)) as progress:
        _run(progress, clock, range(1, 1001), 0.1)  # 100 seconds
    lines = file.getvalue().splitlines()
    assert 4 <= len(lines) <= 6
    assert "\x1b" not in file.getvalue() and "\r" not in file.getvalue()
    assert lines[0].startswith("step 1/1,000 (0%) | - steps/s | - tokens/s")
    assert lines[-1] == (
        "step 1,000/1,000 (100%) | 10.0 steps/s | 10.0k tokens/s | 200 examples/s | ETA 0s | loss gpt 2"
    )


def test_last_line_is_not_printed_twice():
    clock, (console, file) = Clock(), _console(False)
    progress = Progress(1, console=console, clock=clock)
    _run(progress, clock, [1], 1.0)
    progress.close()
    progress.close()
    assert len(file.getvalue().splitlines()) == 1


def test_time_left():
    clock, (console, file) = Clock(), _console(False)
    progress = Progress(1000, console=console, clock=clock)
    _run(progress, clock, [1], 100.0)
    _run(progress, clock, [100], 49.5)
    assert "2.00 steps/s" in file.getvalue().splitlines()[-1]
    assert "ETA 7m30s" in file.getvalue().splitlines()[-1]


def test_nan_loss_is_shown_and_does_not_poison_the_mean():
    clock, (console, file) = Clock(), _console(False)
    progress = Progress(100, console=console, clock=clock)
    _run(progress, clock, [1], 1.0, {"gpt": 4.0})
    _run(progress, clock, [2], 31.0, {"gpt": math.nan})
    _run(progress, clock, [3], 31.0, {"gpt": 4.0})
    assert [line.rsplit(" ", 1)[1] for line in file.getvalue().splitlines()] == ["4", "nan", "4"]


def test_losses_are_smoothed():
    clock, (console, file) = Clock(), _console(False)
    progress = Progress(100, console=console, clock=clock)
    _run(progress, clock, [1], 1.0, {"gpt": 4.0})
    _run(progress, clock, [2], 31.0, {"gpt": 2.0})
    assert file.getvalue().splitlines()[-1].endswith("gpt 3.8")


def test_terminal_shows_a_bar_and_notes_stay():
    clock, (console, file) = Clock(), _console(True)
    with closing(Progress(100, console=console, clock=clock)) as progress:
        _run(progress, clock, [10, 20], 1.0, {"gpt": 2.5, "vit": 1.25})
        progress.note("saved [bold]checkpoint[/bold] 20")
    output = file.getvalue()
    assert "20/100" in output and "10.0 steps/s" in output and "ETA 8s" in output
    assert "gpt 2.5" in output and "vit 1.25" in output
    assert "saved [bold]checkpoint[/bold] 20" in output
    assert output.endswith("\x1b[?25h")  # the cursor is back


def test_time_left_is_whole_at_80_columns():
    clock, (console, _) = Clock(), _console(True)
    console.width = 80
    with closing(Progress(1_000_000, console=console, clock=clock, chips=8, peak=1e12)) as progress:
        _run(progress, clock, [10, 20], 10.0)
        progress.update(20, {"gpt": 2.0}, 0, 0, waited=100.0)
        text = _lines(progress, console)
    assert "ETA 11d13h" in text[0] and all(len(line) <= 80 for line in text)


def _lines(progress, console):
    with console.capture() as captured:
        console.print(progress._render())
    return captured.get().splitlines()


@pytest.mark.parametrize("terminal", [False, True])
def test_remarks_stand_beside_the_loss(terminal):
    clock, (console, file) = Clock(), _console(terminal)
    with closing(Progress(10, console=console, clock=clock)) as progress:
        progress.update(1, {"ctc": 2.5, "vit": 1.0}, 1, 1, remarks={"ctc": "3 of 8 skipped"})
        shown = " ".join(_lines(progress, console)) if terminal else file.getvalue()
    assert "ctc 2.5 (3 of 8 skipped)" in shown and "vit 1" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_disabled_says_nothing(terminal):
    clock, (console, file) = Clock(), _console(terminal)
    with closing(Progress(10, enabled=False, console=console, clock=clock)) as progress:
        _run(progress, clock, [1, 2], 60.0)
        progress.note("hello")
    assert file.getvalue() == ""


RESULTS = {
    "gpt": {"metric": "bits per byte", "value": 2.2134, "baseline": 3.5, "higher_is_better": False, "extra": 1},
    "vit": {"metric": "accuracy", "value": 0.1, "baseline": 0.25, "higher_is_better": True},
    "new": {"metric": "recall", "value": None, "baseline": 0.25, "higher_is_better": True},
}


@pytest.mark.parametrize("terminal", [False, True])
def test_results_table(terminal):
    console, file = _console(terminal)
    results_table(RESULTS, console=console)
    lines = [line.split("  ") for line in file.getvalue().splitlines() if line.strip()]
    rows = {cells[0].strip(): [cell.strip() for cell in cells if cell.strip()] for cells in lines}
    assert rows["task"] == ["task", "metric", "value", "baseline", "verdict"]
    assert rows["gpt"] == ["gpt", "bits per byte", "2.213", "3.5", "better (lower is better)"]
    assert rows["vit"][-1] == "worse (higher is better)"
    assert rows["new"][2:] == ["-", "0.25", "unknown (higher is better)"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (0.5, "0.50"),
        (12.34, "12.3"),
        (999.4, "999"),
        (999.9, "1.00k"),
        (45_120, "45.1k"),
        (2.1e6, "2.10M"),
    ],
)
def test_compact(number, text):
    assert compact(number) == text
    assert compact(math.nan) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42s"), (59.7, "1m00s"), (309, "5m09s"), (11_220, "3h07m"), (187_200, "2d04h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
    assert duration(math.inf) == "-"
