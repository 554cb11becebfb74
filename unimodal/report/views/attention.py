"""Attention maps: a picture of each head, and the weights for the read-out."""

import base64
from typing import Any

import numpy as np

from unimodal.evaluation.samples import AttentionMap
from unimodal.report.views.media import png_uri, reduced
from unimodal.report.views.text import short, visible_blank

_HEADS_SHOWN = 8
_ATTENTION_BYTES = 150_000  # of weights for the read-out, per map
_HEAT_COLOUR = (43, 108, 196)  # the accent, of a tone that reads on white and on black


def attention_view(item: AttentionMap) -> dict[str, Any]:
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
    view["image"] = None if item.image is None else png_uri(reduced(item.image))
    view["labels"] = None if item.labels is None else [visible_blank(label) or "∅" for label in item.labels]
    # Room for labels of at most nine letters, in units of a tenth of a cell.
    view["label_edge"] = 6 + round(4.6 * min(9, max((len(label) for label in view["labels"] or ()), default=0)))
    view["weights"] = None
    if weights.size <= _ATTENTION_BYTES:
        top = max(float(weights.max()), 1e-12)
        view["weights"] = base64.b64encode((weights / top * 255).round().astype(np.uint8).tobytes()).decode()
        view["top"] = short(top)
    return view


def _heat_uri(heat: np.ndarray, power: float) -> str:
    """One colour whose opacity is the weight, so that the map suits a light page, a dark page and a picture below."""
    pixels = np.empty((*heat.shape, 4), np.uint8)
    pixels[..., :3] = _HEAT_COLOUR
    pixels[..., 3] = (255 * (heat / max(float(heat.max()), 1e-12)) ** power).round()
    return png_uri(pixels)
