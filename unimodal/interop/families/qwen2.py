"""Qwen 2 and 2.5 (Yang 2024): Llama's shape with biases on query, key and value."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.llama import decoder


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config.only("use_sliding_window", False)
    return decoder(config, names, biased=("q_proj", "k_proj", "v_proj"), output_bias=False)
