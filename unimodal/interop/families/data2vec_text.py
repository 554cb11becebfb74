"""data2vec (Baevski 2022) on text: RoBERTa under another name."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.roberta import encoder


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return encoder(config, names, directory, names.prefix("data2vec_text."))
