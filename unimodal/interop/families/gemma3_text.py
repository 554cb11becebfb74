"""Gemma 3 (Kamath 2025), its text models: windows in five of six layers, which rotate otherwise, and normed heads."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._layers import FULL, NARROW, layer_types, rope_of, windows
from unimodal.interop.families.gemma2 import sandwiched
from unimodal.interop.families.llama import rope_scaling, rope_theta
from unimodal.interop.table import norm

# Files leave out what is as in the first release.
USUAL = {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config = Fields(USUAL | dict(config.values), config.where)
    every = config.get("sliding_window_pattern", 6)
    kinds = layer_types(config, [NARROW if (i + 1) % every else FULL for i in range(config.need("num_hidden_layers"))])
    window = config.get("sliding_window", 4096)
    there, ours = f"{names.prefix('model.')}layers.{{layer}}.self_attn", "backbones.text.layers.attention"
    extra = tuple(
        row
        for part, name in (("q", "query"), ("k", "key"))
        for row in norm(f"{there}.{part}_norm", f"{ours}.{name}_norm", bias=False)
    )
    far = rope_of(config, FULL, "rope_theta", 1_000_000.0)
    near = rope_of(config, NARROW, "rope_local_base_freq", 10_000.0, scaled=False)
    near.part("rope_parameters").only("rope_type", "default")
    return sandwiched(
        far,
        names,
        kinds,
        window,
        attention_cap=config.raw("attn_logit_softcapping"),
        final_cap=config.raw("final_logit_softcapping"),
        extra=extra,
        qk_norm=True,
        rope_theta=rope_theta(far),
        rope_scaling=rope_scaling(far),
        window_rope_theta=rope_theta(near) if windows(kinds, window) else None,
    )
