"""data2vec (Baevski 2022) on speech: wav2vec 2.0 with several plain position convolutions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.wav2vec2 import CONVOLUTION, speech
from unimodal.interop.table import Row, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    count, taps = config.get("num_conv_pos_embeddings", 5), config.get("conv_pos_kernel_size", 19)
    if count < 1:
        raise UsageError(f"{config.where}: num_conv_pos_embeddings={count} should be at least 1")
    fixed = {"feat_extract_norm": "layer", "num_conv_pos_embeddings": taps, "do_stable_layer_norm": False}
    made = speech(Fields({**config.values, **fixed}, config.where), names, "data2vec_audio.")
    (tower,) = made.towers
    tower = replace(tower, tokenizer=replace(tower.tokenizer, position_layers=count))
    there = f"{names.prefix('data2vec_audio.')}encoder.pos_conv_embed"
    # The one weight-normalised convolution of wav2vec 2.0 is not there.
    rows = [row for row in made.rows if not row.source.startswith(there)]
    for i in range(count):
        here = f"tokenizers.audio.position.{i}"
        rows.append(Row(f"{there}.layers.{i}.conv.weight", f"{here}.kernel", permute=CONVOLUTION))
        rows.append(same(f"{there}.layers.{i}.conv.bias", f"{here}.bias"))
    return replace(made, towers=(tower,), rows=tuple(rows))
