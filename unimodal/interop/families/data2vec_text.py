"""data2vec (Baevski 2022) on text: RoBERTa by another name."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families import roberta
from unimodal.interop.families._derived import renamed


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config = Fields({"layer_norm_eps": 1e-12} | dict(config.values), config.where)
    return renamed(roberta.describe, config, names, directory, there="data2vec_text.", known="roberta.")
