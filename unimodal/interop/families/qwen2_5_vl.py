"""Qwen 2.5-VL (Bai 2025), its text model: Qwen 2. What reads pictures stays unread.

Its rotary positions count time, height and width apart; in text all three are the place.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families import qwen2
from unimodal.interop.families._derived import renamed


def describe(config: Fields, names: Names, directory: Path) -> Description:
    words = Fields({**config.values, **config.part("text_config").values}, config.where)
    for key in ("rope_parameters", "rope_scaling"):
        part = words.part(key)
        part.only("rope_type", "default", "mrope")
        part.only("type", "default", "mrope")
    kept = {"rope_theta": words.part("rope_parameters").raw("rope_theta") or words.get("rope_theta", 1_000_000.0)}
    plain = {key: value for key, value in words.values.items() if key not in ("rope_parameters", "rope_scaling")}
    made = renamed(
        qwen2.describe,
        Fields({**plain, **kept}, config.where),
        names,
        directory,
        there="model.language_model.",
        known="model.",
    )
    return replace(made, leftovers=(*made.leftovers, r"(model\.)?visual\..*"))
