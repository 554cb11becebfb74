"""DINOv2 with registers (Darcet 2024): further learned tokens without a position."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.dinov2 import dino


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return dino(config, names, names.prefix("dinov2_with_registers."), registers=config.get("num_register_tokens", 4))
