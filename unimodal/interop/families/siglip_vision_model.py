"""The picture tower of SigLIP (Zhai 2023) alone, with or without its attention-pool head."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.siglip import image_rows, image_tower, pool_rows
from unimodal.interop.stages import Attended
from unimodal.interop.table import Row


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, tower = names.prefix("vision_model."), image_tower(config)
    outputs: tuple[Output, ...] = ()
    rows: tuple[Row, ...] = image_rows(prefix)
    if f"{prefix}head.probe" in names:
        outputs = (Output("pooled", "image", (Attended("pool", tower.backbone),)),)
        rows += pool_rows(f"{prefix}head", "heads.pool")
    return Description((tower,), outputs, rows)
