"""Layers of several kinds: which of them a window holds for, and how each kind rotates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unimodal.errors import UsageError
from unimodal.interop.describe import Fields

FULL, NARROW = "full_attention", "sliding_attention"


def layer_types(config: Fields, usual: Sequence[str]) -> list[str]:
    """The kind of each layer, `usual` where config.json does not say. Raises UsageError for a kind that we have not."""
    kinds, depth = list(config.get("layer_types", list(usual))), config.need("num_hidden_layers")
    if len(kinds) != depth:
        raise UsageError(f"{config.where}: layer_types are {len(kinds)}, but num_hidden_layers is {depth}")
    if unknown := sorted(set(map(str, kinds)) - {FULL, NARROW}):
        raise UsageError(f"{config.where}: layer_types has {unknown[0]!r}, but only {FULL} and {NARROW} are supported")
    return kinds


def windows(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """The fields `window` and `window_layers` of a BackboneConfig."""
    narrow = tuple(i for i, kind in enumerate(kinds) if kind == NARROW)
    if window is None or not narrow:
        return {}
    return dict(window=window) if len(narrow) == len(kinds) else dict(window=window, window_layers=narrow)


def rope_of(config: Fields, kind: str, theta: str, usual: float, *, scaled: bool = True) -> Fields:
    """config.json as if all layers rotated like those of this kind. theta: what older files call its base, and `usual` is
    the base where they do not say; scaled: whether their rope_scaling is meant for this kind."""
    given = config.part("rope_parameters")
    if kind in given.values:
        parameters = dict(given.part(kind).values)
    else:
        parameters = dict(config.part("rope_scaling").values) if scaled else {}
        parameters |= {"rope_theta": config.get(theta, usual)}
    others = {key: value for key, value in config.values.items() if key not in ("rope_scaling", "rope_theta")}
    return Fields({**others, "rope_parameters": parameters}, config.where)
