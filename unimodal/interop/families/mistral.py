"""Mistral (Jiang 2023): Llama's shape, each token seeing as far back as `sliding_window`."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.llama import decoder


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config.only("layer_types", None)
    # Files that leave it out mean the first release's; those without a window say null.
    window = config.get("sliding_window", 4096) if config.values.get("sliding_window", 4096) is not None else None
    kv_heads = config.need("num_key_value_heads")
    return decoder(config, names, window=window, kv_heads=kv_heads, qkv_bias=False, output_bias=False)
