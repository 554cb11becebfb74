"""wav2vec 2.0 (Baevski 2020): base and the large form, with CTC and pre-training heads."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families._heads import Head, classifier, joined
from unimodal.interop.families.clip import attention_rows
from unimodal.interop.stages import Dense, Pool, Quantised
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import audio

# torch's 1-D convolution keeps [outputs, inputs, taps].
CONVOLUTION = (2, 1, 0)


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return speech(config, names, "wav2vec2.")


def speech(config: Fields, names: Names, prefix: str) -> Description:
    config.only("add_adapter", False)
    prefix, width = names.prefix(prefix), config.need("hidden_size")
    outputs: list[Output] = []
    rows: list[Row] = []
    if "lm_head.weight" in names:
        outputs.append(Output("logits", "audio", (Dense("ctc", width, config.need("vocab_size")),)))
        rows += linear("lm_head", "heads.ctc")
    if "quantizer.codevectors" in names:
        made, more = _pretraining(config, width)
        outputs, rows = [*outputs, *made], [*rows, *more]
    made, more = sound_classifier(config, names, "audio", width)
    return Description(
        (tower(config),),
        (*outputs, *made),
        (*tokenizer_rows(config, names, prefix), *_layers(config, prefix), *rows, *more),
    )


def sound_classifier(config: Fields, names: Names, name: str, width: int) -> Head:
    """`logits`: of each frame, or, where there is a `projector`, of the mean of what it makes of the real frames."""
    if any(key.startswith("tdnn.") for key in names.names):
        raise UsageError(f"{config.where}: a head for speaker vectors (tdnn) is not supported")
    if "projector.weight" not in names:
        return classifier(names, name, width, "classifier")
    size = names.shape("projector.weight")[0]
    before = (Dense("projector", width, size), Pool(stop=None))
    return joined(
        classifier(names, name, size, "classifier", before=before), ((), linear("projector", "heads.projector"))
    )


def tower(config: Fields) -> Tower:
    config.only("feat_extract_activation", "gelu")
    config.only("feat_proj_layer_norm", True)
    config.only("is_causal", None, False)
    config.only("conv_pos_batch_norm", False)
    channels = tuple(config.counts("conv_dim", [512] * 7))
    if len(set(channels)) != 1:
        raise UsageError(
            f"{config.where}: conv_dim={list(channels)} is not supported, only one number of channels for all"
        )
    stable, dropout = config.get("do_stable_layer_norm", False), config.get("hidden_dropout", 0.1)
    epsilon = config.get("layer_norm_eps", 1e-5)
    tokenizer = audio.Config(
        channels=channels[0],
        kernels=tuple(config.counts("conv_kernel", [10, 3, 3, 3, 3, 2, 2])),
        strides=tuple(config.counts("conv_stride", [5, 2, 2, 2, 2, 2, 2])),
        conv_norm=config.get("feat_extract_norm", "group"),
        conv_bias=config.get("conv_bias", False),
        position_kernel=config.count("num_conv_pos_embeddings", 128),
        position_groups=config.count("num_conv_pos_embedding_groups", 16),
        norm=not stable,
        norm_epsilon=epsilon,
        dropout=dropout,
    )
    backbone = BackboneConfig(
        **config.sizes(),
        norm_position="pre" if stable else "post",
        norm_epsilon=epsilon,
        activation=config.activation("hidden_act", "gelu"),
        dropout=dropout,
        final_norm=stable,
    )
    return Tower("audio", "audio", "audio", tokenizer, backbone)


def tokenizer_rows(config: Fields, names: Names, prefix: str) -> tuple[Row, ...]:
    ours = "tokenizers.audio"
    rows: list[Row] = []
    for i in range(len(config.counts("conv_dim", [512] * 7))):
        there, here = f"{prefix}feature_extractor.conv_layers.{i}", f"{ours}.convolutions.{i}"
        rows.append(Row(f"{there}.conv.weight", f"{here}.kernel", permute=CONVOLUTION))
        if config.get("conv_bias", False):
            rows.append(same(f"{there}.conv.bias", f"{here}.bias"))
        if i == 0 or config.get("feat_extract_norm", "group") == "layer":
            rows += norm(f"{there}.layer_norm", f"{here}.norm")
    position = f"{prefix}encoder.pos_conv_embed.conv"
    old = f"{position}.weight_g" in names  # torch renamed what weight normalisation keeps
    magnitude, direction = ("weight_g", "weight_v") if old else (f"parametrizations.weight.original{i}" for i in (0, 1))
    return (
        *rows,
        *norm(f"{prefix}feature_projection.layer_norm", f"{ours}.feature_norm"),
        *linear(f"{prefix}feature_projection.projection", f"{ours}.projection"),
        same(f"{prefix}masked_spec_embed", f"{ours}.mask_embedding", optional=True),
        same(f"{position}.{magnitude}", f"{ours}.position.magnitude"),
        Row(f"{position}.{direction}", f"{ours}.position.direction", permute=CONVOLUTION),
        same(f"{position}.bias", f"{ours}.position.bias"),
    )


def _layers(config: Fields, prefix: str) -> tuple[Row, ...]:
    there, ours = f"{prefix}encoder.layers.{{layer}}", "backbones.audio.layers"
    whole = "backbones.audio.final_norm" if config.get("do_stable_layer_norm", False) else "tokenizers.audio.norm"
    return (
        *attention_rows(f"{there}.attention", f"{ours}.attention"),
        *norm(f"{there}.layer_norm", f"{ours}.attention_norm"),
        *linear(f"{there}.feed_forward.intermediate_dense", f"{ours}.mlp.up"),
        *linear(f"{there}.feed_forward.output_dense", f"{ours}.mlp.down"),
        *norm(f"{there}.final_layer_norm", f"{ours}.mlp_norm"),
        *norm(f"{prefix}encoder.layer_norm", whole),
    )


def _pretraining(config: Fields, width: int) -> tuple[tuple[Output, ...], tuple[Row, ...]]:
    groups, codes = config.count("num_codevector_groups", 2), config.count("num_codevectors_per_group", 320)
    size, shared = config.get("codevector_dim", 256), config.get("proj_codevector_dim", 256)
    channels = config.counts("conv_dim", [512] * 7)[-1]
    quantised = (Quantised("quantiser", channels, groups, codes, size // groups), Dense("target", size, shared))
    return (
        Output("projected", "audio", (Dense("context", width, shared),)),
        Output("quantised", "audio", quantised, start="features"),
    ), (
        *linear("quantizer.weight_proj", "heads.quantiser.scores"),
        same("quantizer.codevectors", "heads.quantiser.table"),
        *linear("project_hid", "heads.context"),
        *linear("project_q", "heads.target"),
    )
