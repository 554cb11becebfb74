"""Meters of a run, or what it costs and how fast the hardware is: the figures that progress shows and meters.json keeps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import Mirror, is_remote, write_whole


@dataclass(frozen=True)
class Cost:
    """The cost of a step and the peak of a chip. Without both there is no MFU."""

    # Model FLOPs of one step of each task over all chips: matrix products of the forward and backward pass, causal
    # attention halved, recomputation not counted.
    flops: Mapping[str, float] = field(default_factory=dict)
    peak: float | None = None  # FLOP/s of one chip


@dataclass(frozen=True)
class Rates:
    """Rates per second of wall time, over all chips. NaN until two updates have been timed."""

    steps: float = math.nan  # of the optimizer
    tokens: float = math.nan  # of all tasks
    examples: float = math.nan  # of all tasks
    waiting: float = math.nan  # share of the time that the loop waited for input
    mfu: float = math.nan  # model FLOPs / (seconds · chips · peak); NaN where no peak is known


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps to trace into WORKDIR/profile, for TensorBoard or Perfetto."""

    steps: str | None = None  # "10:15": steps 10 to 14, counted from 0; None: none

    def __post_init__(self) -> None:
        if self.steps is not None and self.range() is None:
            raise UsageError(f"profile.steps must be FIRST:LAST, as 10:15, but is {self.steps!r}")

    def range(self) -> tuple[int, int] | None:
        """The first step to be traced, and the first after it that is not."""
        found = re.fullmatch(r"(\d+):(\d+)", self.steps or "")
        return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


class Profiler:
    """Traces the steps that were asked for. Waits for the device before and after, so that nothing else is in it."""

    def __init__(self, config: ProfileConfig, folder: epath.PathLike) -> None:
        self._range, self._folder, self._on = config.range(), folder, False
        self._mirror: Mirror | None = None

    def before(self, step: int, state: Any) -> None:
        if self._range is not None and step == self._range[0]:
            jax.block_until_ready(state)
            self._mirror = Mirror(self._folder) if is_remote(self._folder) else None
            jax.profiler.start_trace(str(self._folder if self._mirror is None else self._mirror.local))
            self._on = True

    def after(self, step: int, state: Any) -> None:
        if self._on and self._range is not None and step + 1 >= self._range[1]:
            self.close(state)

    def close(self, state: Any) -> None:
        """Also for a run that ends before the last step to be traced."""
        if self._on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._on = False
            if self._mirror is not None:
                self._mirror.close()


def hbm_peak() -> int | None:
    """Bytes: the most that any device of this process has held at once; None where the platform does not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return max(peaks, default=None)


def summary(rates: Rates, chips: int, cost: Cost) -> dict[str, Any]:
    """The figures of a whole run, for meters.json: None where one is not known."""
    known = lambda value: value if math.isfinite(value) else None  # noqa: E731
    return {
        "steps_per_second": known(rates.steps),
        "examples_per_second": known(rates.examples),
        "tokens_per_second": known(rates.tokens),
        "tokens_per_second_per_chip": known(rates.tokens / chips),
        "input_wait_share": known(rates.waiting),
        "mfu": known(rates.mfu),
        "peak_flops_per_chip": cost.peak,
        "model_flops_per_step": dict(cost.flops),
        "chips": chips,
        "chip": jax.devices()[0].device_kind,
        "hbm_peak_bytes": hbm_peak(),
    }


def write_summary(workdir: epath.PathLike, figures: Mapping[str, Any]) -> None:
    """WORKDIR/meters.json, whole or not at all."""
    write_whole(epath.Path(workdir) / "meters.json", json.dumps(figures, indent=2) + "\n")
