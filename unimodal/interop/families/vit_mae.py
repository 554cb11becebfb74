"""Masked autoencoder (He 2022): ViT's encoder and, where the file has it, the decoder of patches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.vit import (
    MASK,
    backbone,
    embedding_rows,
    encoder_rows,
    layer_rows,
    qkv_bias,
    tower,
)
from unimodal.interop.stages import Decoded, Dense
from unimodal.interop.table import Row, linear, norm, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, made, bias = names.prefix("vit."), tower(config), qkv_bias(config)
    outputs: tuple[Output, ...] = ()
    rows: tuple[Row, ...] = ()
    if "decoder.decoder_embed.weight" in names:
        width = config.get("decoder_hidden_size", 512)
        smaller = backbone(
            config,
            width=width,
            depth=config.get("decoder_num_hidden_layers", 8),
            heads=config.get("decoder_num_attention_heads", 16),
            mlp_width=config.get("decoder_intermediate_size", 2048),
        )
        pixels = made.tokenizer
        decoded = Decoded(
            "decoder", config.need("hidden_size"), 1 + math.prod(pixels.grid), replace(smaller, final_norm=True)
        )
        outputs = (Output("patches", "image", (decoded, Dense("patches", width, pixels.patch**2 * pixels.channels))),)
        # transformers 5 writes the layers of the decoder under another name than everybody before it.
        new = "decoder.decoder_encoder.layer.0.layernorm_before.weight" in names
        layers = "decoder.decoder_encoder.layer" if new else "decoder.decoder_layers"
        rows = (
            *linear("decoder.decoder_embed", "heads.decoder_embed"),
            same("decoder.decoder_pos_embed", "heads.decoder_position.table"),
            same("decoder.mask_token", "heads.decoder_mask.table", optional=True),
            *layer_rows(f"{layers}.{{layer}}", "heads.decoder.layers", bias=bias),
            *norm("decoder.decoder_norm", "heads.decoder.final_norm"),
            *linear("decoder.decoder_pred", "heads.patches"),
        )
    return Description((made,), outputs, (*embedding_rows(prefix), *encoder_rows(prefix, bias=bias), *rows), MASK)
