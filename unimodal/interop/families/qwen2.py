"""Qwen 2 and 2.5 (Yang 2024): Llama's shape with biases on query, key and value."""

from __future__ import annotations

from pathlib import Path

from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.llama import decoder


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return decoder(config, names, window=window(config), biased=("q_proj", "k_proj", "v_proj"), output_bias=False)


def window(config: Fields) -> int | None:
    """The number of tokens that a token sees back, or None for all. Raises UsageError if not all layers see the same."""
    if not config.get("use_sliding_window", False) or config.raw("sliding_window") is None:
        return None
    depth, first = config.need("num_hidden_layers"), config.get("max_window_layers", 28)
    kinds = config.raw("layer_types") or ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]
    if len(set(kinds)) > 1:
        raise UsageError(f"{config.where}: a sliding window in some layers and not in others is not supported")
    return config.need("sliding_window") if set(kinds) == {"sliding_attention"} else None
