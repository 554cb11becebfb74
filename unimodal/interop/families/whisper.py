"""Whisper (Radford 2022): the encoder, and a classifier on it. The decoder's tensors stay unread."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Tower
from unimodal.interop.families.clip import attention_rows
from unimodal.interop.families.wav2vec2 import CONVOLUTION, sound_classifier
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import spectrogram

DECODER = (r"(model\.)?decoder\..*", r"proj_out\.weight")


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config.only("scale_embedding", False)
    config.only("is_causal", None, False)
    prefix, activation = f"{names.prefix('model.')}encoder.", config.activation("activation_function", "gelu")
    backbone = BackboneConfig(
        **config.sizes("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
        norm_epsilon=1e-5,
        activation=activation,
        key_bias=False,
        dropout=config.get("dropout", 0.0),
    )
    tokenizer = spectrogram.Config(config.get("num_mel_bins", 80), max_length=config.get("max_source_positions", 1500))
    outputs, rows = sound_classifier(config, names, "audio", config.need("d_model"))
    tower = Tower("audio", "audio", "spectrogram", tokenizer, backbone)
    return Description((tower,), outputs, (*_rows(prefix), *rows), DECODER)


def _rows(prefix: str) -> tuple[Row, ...]:
    there, ours = f"{prefix}layers.{{layer}}", "backbones.audio.layers"
    rows: list[Row] = []
    for i in (0, 1):
        path = f"tokenizers.audio.convolutions.{i}"
        rows.append(Row(f"{prefix}conv{i + 1}.weight", f"{path}.kernel", permute=CONVOLUTION))
        rows.append(same(f"{prefix}conv{i + 1}.bias", f"{path}.bias"))
    return (
        *rows,
        same(f"{prefix}embed_positions.weight", "tokenizers.audio.position_table.table"),
        *norm(f"{there}.self_attn_layer_norm", f"{ours}.attention_norm"),
        *attention_rows(f"{there}.self_attn", f"{ours}.attention", key_bias=False),
        *norm(f"{there}.final_layer_norm", f"{ours}.mlp_norm"),
        *linear(f"{there}.fc1", f"{ours}.mlp.up"),
        *linear(f"{there}.fc2", f"{ours}.mlp.down"),
        *norm(f"{prefix}layer_norm", "backbones.audio.final_norm"),
    )
