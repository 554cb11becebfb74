"""Qwen 3 (Yang 2025): Llama's shape with a norm on each head's query and key."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.llama import base, biases, decoder
from unimodal.interop.families.qwen2 import window
from unimodal.interop.table import norm


def describe(config: Fields, names: Names, directory: Path) -> Description:
    there, ours = f"{base(names)}layers.{{layer}}.self_attn", "backbones.text.layers.attention"
    extra = tuple(
        row
        for part, name in (("q", "query"), ("k", "key"))
        for row in norm(f"{there}.{part}_norm", f"{ours}.{name}_norm", bias=False)
    )
    return decoder(config, names, window=window(config), extra=extra, qk_norm=True, **biases(config))
