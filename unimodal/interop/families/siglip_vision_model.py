"""The picture tower of SigLIP (Zhai 2023) alone, with its projection or pool where the file has it."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families import siglip
from unimodal.interop.families._derived import tower_alone


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return tower_alone(siglip.describe, config, names, directory, tower="image", part="vision")
