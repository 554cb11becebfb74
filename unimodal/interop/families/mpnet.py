"""MPNet (Song 2020): RoBERTa's heads and positions, and a learned bias by distance, one for all layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families import roberta
from unimodal.interop.families._derived import renamed
from unimodal.interop.table import Row, linear, norm, same

# What config.json does not decide: positions are counted from after id 1, and every token sees all others.
FIXED = {"pad_token_id": 1, "is_causal": False}


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config.only("relative_attention_num_buckets", 32)
    prefix = names.prefix("mpnet.")
    epsilon = config.get("layer_norm_eps", 1e-12)
    config = Fields({**config.values, **FIXED, "layer_norm_eps": epsilon}, config.where)
    made = renamed(roberta.describe, config, names, directory, there="mpnet.", known="roberta.")
    (tower,) = made.towers
    tower = replace(
        tower,
        tokenizer=replace(tower.tokenizer, types=0),
        backbone=replace(tower.backbone, relative_buckets=32, relative_distance=128),
    )
    its_own = (f"{prefix}encoder.", f"{prefix}embeddings.token_type_embeddings.")
    rows = [row for row in made.rows if not row.source.startswith(its_own)]
    return replace(made, towers=(tower,), rows=(*rows, *_rows(f"{prefix}encoder.")))


def _rows(prefix: str) -> tuple[Row, ...]:
    there, ours = f"{prefix}layer.{{layer}}", "backbones.text.layers"
    rows: list[Row] = []
    for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
        rows += linear(f"{there}.attention.attn.{name}", f"{ours}.attention.{part}")
    return (
        *rows,
        *norm(f"{there}.attention.LayerNorm", f"{ours}.attention_norm"),
        *linear(f"{there}.intermediate.dense", f"{ours}.mlp.up"),
        *linear(f"{there}.output.dense", f"{ours}.mlp.down"),
        *norm(f"{there}.output.LayerNorm", f"{ours}.mlp_norm"),
        same(f"{prefix}relative_attention_bias.weight", "backbones.text.relative.table"),
    )
