"""Audio Spectrogram Transformer (Gong 2021): DeiT over overlapping patches of log-mel frames [B,frames,bins]."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.vit import backbone, embedding_rows, encoder_rows, patch_size, qkv_bias
from unimodal.interop.stages import Dense, Normed, Pool
from unimodal.interop.table import linear, norm, same
from unimodal.tokenizers import image


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("audio_spectrogram_transformer."), config.need("hidden_size")
    patches = image.Config(
        image_size=(config.get("num_mel_bins", 128), config.get("max_length", 1024)),
        patch=patch_size(config),
        channels=1,
        registers=2,
        stride=(config.get("frequency_stride", 10), config.get("time_stride", 10)),
        dropout=config.get("hidden_dropout_prob", 0.0),
    )
    outputs = [Output("pooled", "audio", (Pool(0, 2),))]
    rows = [same(f"{prefix}embeddings.distillation_token", "tokenizers.audio.registers.table", rows=(1, 2))]
    if "classifier.dense.weight" in names:
        classes, epsilon = names.shape("classifier.dense.weight")[0], config.get("layer_norm_eps", 1e-12)
        stages = (Normed("classifier_norm", width, epsilon), Dense("classifier", width, classes))
        outputs.append(Output("logits", "audio", stages, start="pooled"))
        rows += [
            *norm("classifier.layernorm", "heads.classifier_norm"),
            *linear("classifier.dense", "heads.classifier"),
        ]
    encoder = encoder_rows(prefix, "backbones.audio", bias=qkv_bias(config))
    renamed = (*embedding_rows(prefix, "tokenizers.audio"), *encoder, *rows)
    return Description((Tower("audio", "audio", "image", patches, backbone(config)),), tuple(outputs), renamed)
