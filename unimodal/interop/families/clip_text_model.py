"""The text tower of CLIP (Radford 2021) alone, with its projection where the file has it."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.clip import OLD_END, text_rows, text_tower
from unimodal.interop.stages import At, Dense, Unit
from unimodal.interop.table import Row, linear


def describe(config: Fields, names: Names, directory: Path) -> Description:
    width, end = config.get("hidden_size", 512), config.get("eos_token_id", 49407)
    outputs = [Output("pooled", "text", (At(None if end == OLD_END else end),))]
    rows: list[Row] = [*text_rows(names.prefix("text_model."))]
    if "text_projection.weight" in names:
        size = names.shape("text_projection.weight")[0]
        stages = (Dense("text_projection", width, size, bias=False), Unit())
        outputs.append(Output("text_embedding", "text", stages, start="pooled"))
        rows += linear("text_projection", "heads.text_projection", bias=False)
    return Description((text_tower(config, causal=True),), tuple(outputs), tuple(rows))
