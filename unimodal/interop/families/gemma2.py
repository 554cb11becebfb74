"""Gemma 2 (Riviere 2024): norms on both sides of each branch, bent logits, a window in every other layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._layers import FULL, NARROW, layer_types, windows
from unimodal.interop.families.llama import decoder
from unimodal.interop.stages import Stage, Vocabulary
from unimodal.interop.table import Row, norm

LAYERS = "backbones.text.layers"

# Beside those that a decoder has: what stands after the branches, and before the second.
NORMS = (
    ("post_attention_layernorm", "attention_post_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "mlp_post_norm"),
)
CAPS = {"attn": 50.0, "final": 30.0}


def describe(config: Fields, names: Names, directory: Path) -> Description:
    kinds = layer_types(config, [FULL if i % 2 else NARROW for i in range(config.need("num_hidden_layers"))])
    # null is no cap; a file that leaves it out means the first release's.
    caps = {name: config.values.get(f"{name}_logit_softcapping", usual) for name, usual in CAPS.items()}
    return sandwiched(
        config, names, kinds, config.get("sliding_window", 4096), attention_cap=caps["attn"], final_cap=caps["final"]
    )


def sandwiched(
    config: Fields,
    names: Names,
    kinds: list[str],
    window: int,
    *,
    attention_cap: float | None,
    final_cap: float | None,
    extra: tuple[Row, ...] = (),
    **choices: Any,
) -> Description:
    """Describe Gemma 2 or 3. choices: further fields of the BackboneConfig."""
    config.only("attention_bias", False)
    config.only("use_bidirectional_attention", None, False)
    config.only("hidden_activation", None, "gelu_pytorch_tanh")
    made = decoder(
        config,
        names,
        scaled=True,
        tied=True,
        extra=extra,
        kv_heads=config.get("num_key_value_heads", 4),
        head_size=config.get("head_dim", 256),
        activation="geglu",
        norm_offset=1.0,
        norm_position="sandwich",
        qkv_bias=False,
        output_bias=False,
        attention_scale=float(config.get("query_pre_attn_scalar", 256.0)) ** -0.5,
        attention_soft_cap=attention_cap,
        **windows(kinds, window),
        **choices,
    )
    there = f"{names.prefix('model.')}layers.{{layer}}"
    norms = [row for name, ours in NORMS for row in norm(f"{there}.{name}", f"{LAYERS}.{ours}", bias=False)]
    rows = [row for row in made.rows if row.ours != f"{LAYERS}.mlp_norm.scale"]
    outputs = [
        replace(output, stages=tuple(_capped(stage, final_cap) for stage in output.stages)) for output in made.outputs
    ]
    return replace(made, outputs=tuple(outputs), rows=(*rows, *norms))


def _capped(stage: Stage, cap: float | None) -> Stage:
    return replace(stage, soft_cap=cap) if isinstance(stage, Vocabulary) else stage
