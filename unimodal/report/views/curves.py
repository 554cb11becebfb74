"""Charts of values over steps, as coordinates."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimodal.report.views.text import number, short

Curve = Sequence[tuple[int, float]]

_CHART_POINTS = 240
CHART = {"width": 340, "height": 210, "left": 46, "right": 20, "top": 10, "bottom": 38}


@dataclass(frozen=True)
class _Scale:
    """Maps low..high to start..end of the drawing, evenly or by logarithm."""

    low: float  # value
    high: float  # value
    start: float  # coordinate of low
    end: float  # coordinate of high
    logarithmic: bool = False  # by logarithm

    def __call__(self, value: Any) -> Any:
        share = (value - self.low) / (self.high - self.low)
        if self.logarithmic:
            share = np.log(value / self.low) / np.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def chart_views(
    curves: Mapping[str, Curve], eval_curves: Mapping[str, Curve], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A card per task: its training loss and, below on the same steps, its metric with the baseline as a line."""
    charts = []
    named = dict.fromkeys([*results, *curves, *eval_curves])  # in the order of the table above
    for task in (name for name in named if name in curves or name in eval_curves):
        last = max([step for curve in (curves, eval_curves) for step, _ in curve.get(task, ())], default=1)
        plots = []
        if task in curves:
            plots.append(_plot(curves[task], last, "training loss", "loss (nats)", smooth=True))
        if task in eval_curves:
            metric = str(results.get(task, {}).get("metric", "evaluation"))
            plots.append(_plot(eval_curves[task], last, metric, metric, results.get(task, {}).get("baseline")))
        charts.append({"task": task, "plots": plots})
    return charts


def _plot(
    points: Curve, last_step: int, name: str, unit: str, baseline: float | None = None, *, smooth: bool = False
) -> dict[str, Any]:
    """Coordinates of one chart in the units of its view box; steps run from 0 to `last_step`."""
    steps = np.array([step for step, _ in points], np.float64)
    raw = np.array([value for _, value in points], np.float64)
    finite = np.isfinite(raw)
    view = {"name": name, "unit": unit, "smooth": smooth, "bad": int((~finite).sum()), "empty": not finite.any()}
    if view["empty"]:
        return view
    steps, raw = steps[finite], raw[finite]
    line = _smoothed(raw) if smooth else raw
    reference = baseline if baseline is not None and math.isfinite(baseline) else None
    low, high = _value_range(raw, line, reference)
    logarithmic = low > 0 and high / low >= 10
    ticks = _log_ticks(low, high) if logarithmic else _linear_ticks(low, high)
    across = _Scale(0, max(last_step, 1), CHART["left"], CHART["width"] - CHART["right"])
    height = _Scale(ticks[0], ticks[-1], CHART["height"] - CHART["bottom"], CHART["top"], logarithmic)

    kept = np.unique(np.linspace(0, len(raw) - 1, min(len(raw), _CHART_POINTS)).round().astype(int))
    steps, raw, line = steps[kept], raw[kept], line[kept]
    dots = height(np.clip(raw, ticks[0], ticks[-1]))  # a wild point is drawn on the edge
    data = [
        [_r(x), _r(y), int(step), short(value), short(mean)]
        for x, y, step, value, mean in zip(across(steps), height(line), steps, raw, line, strict=True)
    ]
    return view | {
        "logarithmic": logarithmic,
        "line": "M" + "L".join(f"{x} {y}" for x, y, *_ in data),
        "dots": "".join(f"M{point[0]} {_r(dot)}h0" for point, dot in zip(data, dots, strict=True)),
        "data": json.dumps(data, separators=(",", ":")),
        "first": {"step": data[0][2], "value": data[0][4]},
        "last": {"x": data[-1][0], "y": data[-1][1], "step": data[-1][2], "value": data[-1][4]},
        "rows": [{"y": _r(height(tick)), "label": number(tick, 3)} for tick in ticks],
        "columns": [
            {"x": _r(across(tick)), "label": _steps(tick)}
            for tick in _linear_ticks(0, max(last_step, 1), 4)
            if tick <= last_step
        ],
        "baseline": None if reference is None else {"y": _r(height(reference)), "value": reference},
    }


def _r(value: float) -> float:
    return round(float(value), 1)


def _steps(step: float) -> str:
    return f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k" if step >= 10_000 else f"{step:,g}"


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred triangular mean about a twentieth of the curve wide: unlike a running mean it does not lag."""
    reach = max(1, len(values) // 40) if len(values) > 8 else 0
    kernel = 1.0 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    weight = np.convolve(np.ones_like(values), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / weight


def _value_range(raw: np.ndarray, line: np.ndarray, reference: float | None) -> tuple[float, float]:
    """Holds the whole line and all but the wildest single points; never of zero height."""
    low, high = np.percentile(raw, [1, 99])
    low, high = float(min(low, line.min())), float(max(high, line.max()))
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 * abs(high) or 0.5
        low, high = low - room, high + room
    return low, high


def _linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    ticks = np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1) * step
    return [float(f"{tick:.10g}") for tick in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten from the last at or below `low` to the first at or above `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{factor}e{power}") for power in powers for factor in ((1, 2, 5) if len(powers) < 5 else (1,))]
    first = max(tick for tick in every if tick <= low * 1.001)
    last = min(tick for tick in every if tick >= high * 0.999)
    return [tick for tick in every if first <= tick <= last]
