"""SmolLM3 (Bakouch 2025): Llama's shape; some layers do not rotate."""

from __future__ import annotations

from pathlib import Path

from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._layers import FULL, NARROW, layer_types, windows
from unimodal.interop.families.llama import decoder, rope_theta


def describe(config: Fields, names: Names, directory: Path) -> Description:
    depth, bias, mlp_bias = (
        config.need("num_hidden_layers"),
        config.get("attention_bias", False),
        config.get("mlp_bias", False),
    )
    every = config.get("no_rope_layer_interval", 4)
    turning = config.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(depth)])  # 1: rotates
    if len(turning) != depth:
        raise UsageError(f"{config.where}: no_rope_layers are {len(turning)}, but num_hidden_layers is {depth}")
    window = config.raw("sliding_window") if config.get("use_sliding_window", False) else None
    kinds = layer_types(config, [FULL if turns or window is None else NARROW for turns in turning])
    layers = tuple(i for i, turns in enumerate(turning) if turns)
    return decoder(
        config,
        names,
        tied=True,
        kv_heads=config.get("num_key_value_heads", 4),
        biased=("q_proj", "k_proj", "v_proj", "o_proj") if bias else (),
        mlp_bias=mlp_bias,
        qkv_bias=bias,
        output_bias=bias,
        rope_theta=rope_theta(config, 2_000_000.0),
        rope_layers=None if len(layers) == depth else layers,
        **windows(kinds, window),
    )
