"""Meters say what was, per chip and as a share of the peak; a profile is traced where it was asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from unimodal.chips import peak_flops
from unimodal.errors import UsageError
from unimodal.training.meters import Cost, ProfileConfig, Rates, summary
from unimodal.training.progress import Progress


def test_mfu_is_model_flops_over_the_peak_of_all_chips() -> None:
    now = [0.0]
    file = io.StringIO()
    console = Console(file=file, force_terminal=False, width=200)
    progress = Progress(10, chips=4, peak=100e12, console=console, clock=lambda: now[0])
    for step in (1, 2, 3):  # the first holds a compilation, and does not count
        now[0] += 2.0
        progress.update(step, {"gpt": 1.0}, 8000, 8, flops=320e12, waited=0.5)
    rates = progress.mean_rates()
    assert (rates.steps, rates.tokens, rates.examples) == (0.5, 4000, 4)
    assert rates.mfu == pytest.approx(320e12 / 2 / 4 / 100e12) == pytest.approx(0.4)
    assert rates.waiting == pytest.approx(0.25)
    progress.close()
    assert "4.00k tokens/s (1.00k/chip) | 4.00 examples/s | MFU 40.0% | 25% waiting for input" in file.getvalue()


def test_without_a_peak_there_is_no_mfu() -> None:
    figures = summary(Rates(1.0, 10.0, 2.0, 0.0), 2, Cost())
    assert figures["mfu"] is None
    assert (figures["tokens_per_second_per_chip"], figures["peak_flops_per_chip"]) == (5.0, None)
    json.dumps(figures, allow_nan=False)


def test_peaks_are_of_the_chip_that_is_meant() -> None:
    assert (peak_flops("TPU v5 lite"), peak_flops("TPU v5"), peak_flops("TPU v5p")) == (197e12, 459e12, 459e12)
    assert (peak_flops("NVIDIA H200"), peak_flops("cpu")) == (989e12, None)


@pytest.mark.parametrize("steps", ["10", "5:5", "7:3", "a:b"])
def test_a_range_that_is_none_is_one_line(steps: str) -> None:
    with pytest.raises(UsageError, match="profile.steps must be FIRST:LAST, as 10:15"):
        ProfileConfig(steps)


def test_a_run_leaves_its_meters_and_its_profile(tmp_path: Path) -> None:
    run = tiny.train(tiny.plain("vit", steps=4, profile__steps="1:3"), tmp_path, fake_data=True)
    assert run.done
    figures = json.loads((tmp_path / "meters.json").read_text())
    assert figures["examples_per_second"] == pytest.approx(8 * figures["steps_per_second"])
    assert 0 <= figures["input_wait_share"] <= 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
