"""HuBERT (Hsu 2021): the encoder of wav2vec 2.0."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.wav2vec2 import speech


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return speech(config, names, "hubert.")
