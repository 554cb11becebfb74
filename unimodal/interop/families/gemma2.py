"""Gemma 2 (Riviere 2024): norms on both sides of each branch, bent logits, a window in every other layer."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._layers import FULL, NARROW, layer_types, windows
from unimodal.interop.families.llama import decoder
from unimodal.interop.table import Row

NORMS = (
    ("input_layernorm", "attention_norm"),
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
    **choices: object,
) -> Description:
    """What Gemma 2 and 3 have in common. choices: further fields of the BackboneConfig."""
    config.only("attention_bias", False)
    config.only("use_bidirectional_attention", None, False)
    config.only("hidden_activation", None, "gelu_pytorch_tanh")
    return decoder(
        config,
        names,
        scaled=True,
        tied=True,
        norms=NORMS,
        soft_cap=final_cap,
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
