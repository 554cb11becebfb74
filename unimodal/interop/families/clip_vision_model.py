"""The picture tower of CLIP (Radford 2021) alone, with its projection where the file has it."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.clip import image_rows, image_tower
from unimodal.interop.stages import Dense, Normed, Pool, Unit
from unimodal.interop.table import Row, linear, norm


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("vision_model."), config.get("hidden_size", 768)
    outputs = [Output("pooled", "image", (Pool(), Normed("image_norm", width, config.get("layer_norm_eps", 1e-5))))]
    rows: list[Row] = [*image_rows(prefix), *norm(f"{prefix}post_layernorm", "heads.image_norm")]
    if "visual_projection.weight" in names:
        size = names.shape("visual_projection.weight")[0]
        stages = (Dense("image_projection", width, size, bias=False), Unit())
        outputs.append(Output("image_embedding", "image", stages, start="pooled"))
        rows += linear("visual_projection", "heads.image_projection", bias=False)
    return Description((image_tower(config),), tuple(outputs), tuple(rows))
