"""The report of a run: one self-contained HTML page with results, curves, samples, attention, parameters and config.

This file turns numbers, pictures and sounds into what the page needs (coordinates, PNG and WAV data URIs); the page
itself is `report.html.jinja`. Nothing on the page comes from a network, and every text is escaped.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from unimodal.evaluation.samples import (
    AttentionMap,
    AudioSample,
    FilledText,
    ImageSample,
    Sample,
    TextSample,
    encode_png,
    encode_wav,
)
from unimodal.storage import write_whole
from unimodal.training.metrics import verdict

Curve = Sequence[tuple[int, float]]

# What keeps the page small, whatever is handed in.
_SAMPLES_PER_TASK = 12
_HEADS_SHOWN = 8
_CHART_POINTS = 240
_PICTURE_SIDE = 112
_SOUND_RATE = 16_000
_SOUND_SECONDS = 20.0  # playable, on the whole page
_ATTENTION_BYTES = 150_000  # of weights for the read-out, per map

_CHART = {"width": 340, "height": 210, "left": 46, "right": 20, "top": 10, "bottom": 38}
_HEAT_COLOUR = (43, 108, 196)  # the accent, of a tone that reads on white and on black


def write_report(
    path: epath.PathLike,
    *,
    title: str,
    subtitle: str = "",
    curves: Mapping[str, Curve] | None = None,
    eval_curves: Mapping[str, Curve] | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    samples: Mapping[str, Sequence[Any]] | None = None,
    attention: Sequence[AttentionMap] = (),
    parameters: Sequence[Mapping[str, Any]] = (),
    total_parameters: int = 0,
    config_text: str = "",
    run: Mapping[str, Any] | None = None,
) -> epath.Path:
    """Write the page to `path`, replacing it in one piece; returns the path.

    Args:
        curves: training loss per task as (step, value), in nats; NaN is allowed and counted on the chart.
        eval_curves: the metric named in `results`, measured during training, per task as (step, value).
        results: per task {"metric", "value", "baseline", "higher_is_better"}; other keys are ignored.
        samples: per task, what `unimodal.evaluation.samples` defines; the first twelve are shown.
        parameters: rows of {"name", "shape", "axes", "spec", "bytes_per_device"}.
        run: facts to show under the title, in order: steps, wall time, device, fingerprint …
    """
    results, samples = results or {}, samples or {}
    sound_left = [_SOUND_SECONDS]
    views = {
        task: [_sample_view(sample, sound_left) for sample in list(shown)[:_SAMPLES_PER_TASK]]
        for task, shown in samples.items()
    }
    context = {
        "title": title,
        "subtitle": subtitle,
        "run": {name: _fact(value) for name, value in (run or {}).items()},
        "results": [_result_view(task, result) for task, result in results.items()],
        "charts": _chart_views(curves or {}, eval_curves or {}, results),
        "samples": views,
        "attention": [_attention_view(item) for item in attention],
        "parameters": _parameter_views(parameters),
        "total_parameters": total_parameters,
        "total_bytes": _bytes(sum(int(row["bytes_per_device"]) for row in parameters)),
        "config_text": config_text,
        "chart": _CHART,
    }
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = _environment().from_string(template).render(context)
    write_whole(path, page)
    return epath.Path(path)


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.filters["number"] = _number
    return environment


def _printable(value: Any) -> Any:
    """Byte-level models write control characters, NUL and halves of characters, none of which HTML may hold."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(_visible(character) for character in value)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)  # Unicode's pictures of the control characters
    return "\ufffd" if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 else character


# ---- numbers -------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 4) -> str:
    """`digits` significant figures without a needless exponent; an en dash for what is missing or NaN."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:,.{digits}g}".replace("-", "−")


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return _number(value)


def _bytes(count: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _result_view(task: str, result: Mapping[str, Any]) -> dict[str, Any]:
    value, baseline = result.get("value"), result.get("baseline")
    higher = bool(result.get("higher_is_better", True))
    known = [float(number) for number in (value, baseline) if number is not None and math.isfinite(number)]
    # Shares (accuracy, recall) are drawn against one, everything else against the longer of the two bars.
    full = 1.0 if higher and known and max(known) <= 1 else max(known, default=0.0)
    drawable = full > 0 and min(known) >= 0
    ratio = ""
    if len(known) == 2 and known[1] > 0:
        ratio = (
            f"{_number(known[0] / known[1], 3)} × baseline"
            if higher
            else f"{known[0] / known[1] - 1:+.0%}".replace("-", "−")
        )
    bars = [
        {"who": who, "value": number, "width": 100 * number / full if drawable and number is not None else 0.0}
        for who, number in (("model", value), ("baseline", baseline))
    ]
    for bar in bars:
        bar["width"] = bar["width"] if math.isfinite(bar["width"]) else 0.0
    metric, judged = str(result.get("metric", "")), verdict(value, baseline, higher)
    return {"task": task, "metric": metric, "higher": higher, "verdict": judged, "ratio": ratio, "bars": bars}


def _parameter_views(parameters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    largest = max((int(row["bytes_per_device"]) for row in parameters), default=1)
    return [
        {
            "name": str(row["name"]),
            "shape": " × ".join(str(size) for size in row["shape"]) or "scalar",
            "size": math.prod(int(size) for size in row["shape"]),
            "axes": _names(row["axes"]),
            "spec": _names(row["spec"]),
            "bytes": int(row["bytes_per_device"]),
            "bytes_text": _bytes(int(row["bytes_per_device"])),
            "share": 100 * int(row["bytes_per_device"]) / max(largest, 1),
        }
        for row in parameters
    ]


def _names(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (tuple, list)):
        return ", ".join("–" if item is None else str(item) for item in value) or "–"
    return str(value)


# ---- curves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Maps low..high to start..end of the drawing, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: Any) -> Any:
        share = (value - self.low) / (self.high - self.low)
        if self.logarithmic:
            share = np.log(value / self.low) / np.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def _chart_views(
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
    across = _Scale(0, max(last_step, 1), _CHART["left"], _CHART["width"] - _CHART["right"])
    height = _Scale(ticks[0], ticks[-1], _CHART["height"] - _CHART["bottom"], _CHART["top"], logarithmic)

    kept = np.unique(np.linspace(0, len(raw) - 1, min(len(raw), _CHART_POINTS)).round().astype(int))
    steps, raw, line = steps[kept], raw[kept], line[kept]
    dots = height(np.clip(raw, ticks[0], ticks[-1]))  # a wild point is drawn on the edge
    data = [
        [_r(x), _r(y), int(step), _short(value), _short(mean)]
        for x, y, step, value, mean in zip(across(steps), height(line), steps, raw, line, strict=True)
    ]
    return view | {
        "logarithmic": logarithmic,
        "line": "M" + "L".join(f"{x} {y}" for x, y, *_ in data),
        "dots": "".join(f"M{point[0]} {_r(dot)}h0" for point, dot in zip(data, dots, strict=True)),
        "data": json.dumps(data, separators=(",", ":")),
        "first": {"step": data[0][2], "value": data[0][4]},
        "last": {"x": data[-1][0], "y": data[-1][1], "step": data[-1][2], "value": data[-1][4]},
        "rows": [{"y": _r(height(tick)), "label": _number(tick, 3)} for tick in ticks],
        "columns": [
            {"x": _r(across(tick)), "label": _steps(tick)}
            for tick in _linear_ticks(0, max(last_step, 1), 4)
            if tick <= last_step
        ],
        "baseline": None if reference is None else {"y": _r(height(reference)), "value": reference},
    }


def _r(value: float) -> float:
    return round(float(value), 1)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


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


# ---- samples -------------------------------------------------------------------------------------------------------


def _sample_view(sample: Sample, sound_left: list[float]) -> dict[str, Any]:
    if isinstance(sample, TextSample):
        return {"kind": "text", "sample": sample}
    if isinstance(sample, FilledText):
        return {"kind": "filled", "sample": sample, **_filled_view(sample)}
    if isinstance(sample, ImageSample):
        return {"kind": "image", "sample": sample, **_image_view(sample)}
    if isinstance(sample, AudioSample):
        return {"kind": "audio", "sample": sample, **_audio_view(sample, sound_left)}
    raise TypeError(f"the report cannot draw a {type(sample).__name__}; see unimodal.evaluation.samples.Sample")


def _filled_view(sample: FilledText) -> dict[str, Any]:
    pieces: list[dict[str, Any]] = []
    done = 0
    for start, end, guess, truth in sample.spans:
        pieces.append({"text": sample.text[done:start]})
        pieces.append({"guess": _blank(guess), "truth": _blank(truth), "right": guess == truth})
        done = end
    pieces.append({"text": sample.text[done:]})
    return {"pieces": pieces, "right": sum(guess == truth for _, _, guess, truth in sample.spans)}


def _blank(text: str) -> str:
    """Spaces and line ends must be seen where they are the answer."""
    return text.replace("\n", "⏎").replace(" ", "␣") if not text.strip() else text


def _image_view(sample: ImageSample) -> dict[str, Any]:
    guesses = [
        {"label": label, "share": 100 * float(np.clip(np.nan_to_num(chance), 0, 1)), "right": label == sample.truth}
        for label, chance in sample.guesses
    ]
    right = None if sample.truth is None or not guesses else bool(guesses[0]["right"])
    return {"picture": _png_uri(_reduced(sample.image)), "guesses": guesses, "right": right}


def _audio_view(sample: AudioSample, sound_left: list[float]) -> dict[str, Any]:
    seconds = len(sample.waveform) / sample.rate
    sound = None
    if 0 < seconds <= sound_left[0]:
        sound_left[0] -= seconds
        fold = math.ceil(sample.rate / _SOUND_RATE)
        folded = sample.waveform[: len(sample.waveform) // fold * fold].reshape(-1, fold).mean(axis=1)
        sound = _data_uri("audio/wav", encode_wav(folded, round(sample.rate / fold)))
    segments = [
        {
            "left": 100 * start / seconds,
            "width": 100 * (min(end, seconds) - start) / seconds,
            "label": label,
            "verdict": "right" if label.endswith("right") else "wrong" if label.endswith("wrong") else "",
            "times": f"{start:.2f}–{end:.2f} s",
        }
        for start, end, label in sample.segments
        if start < seconds
    ]
    judged = [segment["verdict"] for segment in segments if segment["verdict"]]
    score = f"{judged.count('right')} of {len(judged)} picked right" if judged else ""
    return {
        "seconds": seconds,
        "sound": sound,
        "segments": segments,
        "shape": _outline(sample.waveform),
        "score": score,
    }


def _outline(waveform: np.ndarray, columns: int = 480) -> str:
    """The closed outline of the waveform in a box of `columns` × 100: its lowest and highest value in each column."""
    values = np.nan_to_num(waveform.astype(np.float32))
    if not len(values):
        return ""
    loudest = max(float(np.abs(values).max()), 1e-6)
    edges = np.unique(np.linspace(0, len(values), min(columns, len(values)) + 1).astype(int))[:-1]
    high = 50 - 48 * np.maximum.reduceat(values, edges) / loudest
    low = 50 - 48 * np.minimum.reduceat(values, edges) / loudest
    x = np.linspace(0, columns, len(edges)).round(1)
    there = [f"{a:g} {b:.0f}" for a, b in zip(x, high, strict=True)]
    back = [f"{a:g} {b:.0f}" for a, b in zip(x[::-1], low[::-1] + 0.5, strict=True)]
    return "M" + "L".join([*there, *back]) + "Z"


def _reduced(image: np.ndarray) -> np.ndarray:
    """Large pictures shrunk by a whole factor, by averaging; small ones as they are (the page enlarges them)."""
    fold = math.ceil(max(image.shape[:2]) / _PICTURE_SIDE)
    if fold == 1 or min(image.shape[:2]) < fold:
        return image
    rows, columns = image.shape[0] // fold, image.shape[1] // fold
    blocks = image[: rows * fold, : columns * fold].reshape(rows, fold, columns, fold, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def _png_uri(pixels: np.ndarray) -> str:
    return _data_uri("image/png", encode_png(pixels))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---- attention -----------------------------------------------------------------------------------------------------


def _attention_view(item: AttentionMap) -> dict[str, Any]:
    """Each head's map: the mean over queries on the image grid, or the whole query × key matrix."""
    weights = np.nan_to_num(item.weights.astype(np.float64)).clip(min=0)
    total, queries, keys = weights.shape
    weights = weights[:_HEADS_SHOWN]
    shares = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-12)
    # exp of the entropy: over how many keys a query spreads its attention, on average.
    spread = np.exp(-(shares * np.log(np.maximum(shares, 1e-12))).sum(-1)).mean(-1)
    maps = weights.mean(axis=1).reshape(-1, *item.grid) if item.grid else weights
    # In a matrix the square root keeps weak weights visible beside one strong one; a mean needs no such help.
    power = 1.0 if item.grid else 0.5
    view = {"title": item.title, "query_count": queries, "key_count": keys, "total_heads": total, "grid": item.grid}
    view["heads"] = [
        {"picture": _heat_uri(heat, power), "spread": float(mean)} for heat, mean in zip(maps, spread, strict=True)
    ]
    view["image"] = None if item.image is None else _png_uri(_reduced(item.image))
    view["labels"] = None if item.labels is None else [_blank(label) or "∅" for label in item.labels]
    # Room for labels of at most nine letters, in units of a tenth of a cell.
    view["label_edge"] = 6 + round(4.6 * min(9, max((len(label) for label in view["labels"] or ()), default=0)))
    view["weights"] = None
    if weights.size <= _ATTENTION_BYTES:
        top = max(float(weights.max()), 1e-12)
        view["weights"] = base64.b64encode((weights / top * 255).round().astype(np.uint8).tobytes()).decode()
        view["top"] = _short(top)
    return view


def _heat_uri(heat: np.ndarray, power: float) -> str:
    """One colour whose opacity is the weight, so that the map suits a light page, a dark page and a picture below."""
    pixels = np.empty((*heat.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT_COLOUR
    pixels[..., 3] = (255 * (heat / max(float(heat.max()), 1e-12)) ** power).round()
    return _png_uri(pixels)
