"""The page of `data inspect`: one HTML file, nothing from a network, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from unimodal.inspection.looking import Looked, SplitLook

_BARS = 24


def write_page(path: Path, looked: Sequence[Looked], title: str) -> Path:
    """Write the page, replacing it in one piece; returns the path."""
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(title=title, tasks=[_task(each) for each in looked])
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)


def _task(looked: Looked) -> dict[str, Any]:
    shapes = [
        (name, f"{np.dtype(spec.dtype)}{list(spec.shape) if spec.shape else ''}") for name, spec in looked.spec.items()
    ]
    return {
        "looked": looked,
        "shapes": shapes,
        "splits": [_split(split) for split in looked.splits],
        "speed": f"{looked.per_second:,.0f}",
    }


def _split(split: SplitLook) -> dict[str, Any]:
    return {
        "name": split.name,
        "examples": f"{split.examples:,}",
        "looked": f"{split.looked:,}",
        "filled": None if split.filled is None else f"{split.filled:.1%}",
        "lengths": [
            (name if " " in name else f"{name}, how long", histogram(values)) for name, values in split.lengths.items()
        ],
        "labels": [(name, _bars(counts)) for name, counts in split.labels.items()],
        "skipped": split.skipped[:20],
        "more": max(0, len(split.skipped) - 20),
    }


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Bars of equal width from the least to the most; heights in percent of the tallest."""
    low, high = int(values.min()), int(values.max())
    counts, _ = np.histogram(values, bins=min(_BARS, high - low + 1), range=(low - 0.5, high + 0.5))
    return {
        "low": f"{low:,}",
        "middle": f"{int(np.median(values)):,}",
        "high": f"{high:,}",
        "bars": [(f"{100 * count / counts.max():.1f}", int(count)) for count in counts],
    }


def _bars(counts: Any) -> dict[str, Any]:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    most, total = ordered[0][1], sum(counts.values())
    shown = [(name, count, f"{100 * count / total:.1f}", f"{100 * count / most:.1f}") for name, count in ordered[:12]]
    return {"shown": shown, "more": len(ordered) - len(shown)}
