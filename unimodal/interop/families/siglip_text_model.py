"""The text tower of SigLIP (Zhai 2023) alone."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.clip import text_rows
from unimodal.interop.families.siglip import text_tower
from unimodal.interop.stages import Dense, Last
from unimodal.interop.table import linear


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("text_model."), config.get("hidden_size", 768)
    size = config.get("projection_size", width)
    outputs = (Output("pooled", "text", (Last(), Dense("text_projection", width, size))),)
    rows = (*text_rows(prefix), *linear(f"{prefix}head", "heads.text_projection"))
    return Description((text_tower(config),), outputs, rows)
