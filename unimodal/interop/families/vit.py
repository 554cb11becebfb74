"""ViT (Dosovitskiy 2021), and DINO (Caron 2021), whose encoder it is."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.stages import Dense, Pool
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import image

# torch's convolution keeps [outputs, channels, rows, columns]; our patches are rows, columns, channels.
PATCH = (2, 3, 1, 0)
# What stands for a hidden patch while patches are predicted.
MASK = (r"(.*\.)?mask_token",)


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("vit."), config.need("hidden_size")
    outputs: list[Output] = []
    rows: list[Row] = []
    if f"{prefix}pooler.dense.weight" in names:
        act = config.activation("pooler_act", "tanh")
        outputs.append(
            Output("pooled", "image", (Pool(), Dense("pooler", width, config.get("pooler_output_size", width), act)))
        )
        rows += linear(f"{prefix}pooler.dense", "heads.pooler")
    if "classifier.weight" in names:
        outputs.append(
            Output("logits", "image", (Pool(), Dense("classifier", width, names.shape("classifier.weight")[0])))
        )
        rows += linear("classifier", "heads.classifier")
    encoder = encoder_rows(prefix, bias=qkv_bias(config))
    return Description((tower(config),), tuple(outputs), (*embedding_rows(prefix), *encoder, *rows), MASK)


def qkv_bias(config: Fields) -> bool:
    return config.get("qkv_bias", True)


def tower(config: Fields, *, registers: int = 1) -> Tower:
    return Tower("image", "image", "image", tokenizer(config, registers=registers, resize=True), backbone(config))


def tokenizer(config: Fields, **choices: object) -> image.Config:
    size, patch = config.pair("image_size", 224), patch_size(config)
    fields = dict(
        image_size=size,
        patch=patch,
        channels=config.get("num_channels", 3),
        stride=None if not (size[0] % patch or size[1] % patch) else (patch, patch),
        dropout=config.get("hidden_dropout_prob", 0.0),
    )
    return image.Config(**{**fields, **choices})  # pyright: ignore[reportArgumentType]


def patch_size(config: Fields) -> int:
    height, width = config.pair("patch_size", 16)
    if height != width:
        raise UsageError(f"{config.where}: patch_size={[height, width]} is not supported, only one size for both")
    return height


def backbone(config: Fields, **choices: object) -> BackboneConfig:
    """The backbone of encoders whose config.json has these names."""
    config.only("is_causal", None, False)
    fields = dict(
        width=config.need("hidden_size"),
        depth=config.need("num_hidden_layers"),
        heads=config.need("num_attention_heads"),
        mlp_width=config.get("intermediate_size", 4 * config.need("hidden_size")),
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        activation=config.activation("hidden_act", "gelu"),
        qkv_bias=qkv_bias(config),
        dropout=config.get("hidden_dropout_prob", 0.0),
    )
    return BackboneConfig(**{**fields, **choices})  # pyright: ignore[reportArgumentType]


def embedding_rows(prefix: str, ours: str = "tokenizers.image", *, position: bool = True) -> tuple[Row, ...]:
    there = f"{prefix}embeddings"
    rows = [
        *patch_rows(f"{there}.patch_embeddings.projection", ours),
        same(f"{there}.cls_token", f"{ours}.registers.table", rows=(0, 1)),
    ]
    if position:
        rows.append(same(f"{there}.position_embeddings", f"{ours}.position_table.table"))
    return tuple(rows)


def patch_rows(source: str, ours: str, *, bias: bool = True) -> tuple[Row, ...]:
    rows = (Row(f"{source}.weight", f"{ours}.projection.kernel", permute=PATCH),)
    return (*rows, same(f"{source}.bias", f"{ours}.projection.bias")) if bias else rows


def encoder_rows(
    prefix: str, ours: str = "backbones.image", *, bias: bool = True, final: str = "layernorm"
) -> tuple[Row, ...]:
    there, layer = f"{prefix}encoder.layer.{{layer}}", f"{ours}.layers"
    return (
        *layer_rows(there, layer, bias=bias),
        *norm(f"{prefix}{final}", f"{ours}.final_norm"),
    )


def layer_rows(there: str, layer: str, *, bias: bool = True, key_bias: bool = True) -> tuple[Row, ...]:
    return (
        *norm(f"{there}.layernorm_before", f"{layer}.attention_norm"),
        *linear(f"{there}.attention.attention.query", f"{layer}.attention.query", bias=bias),
        *linear(f"{there}.attention.attention.key", f"{layer}.attention.key", bias=bias and key_bias),
        *linear(f"{there}.attention.attention.value", f"{layer}.attention.value", bias=bias),
        *linear(f"{there}.attention.output.dense", f"{layer}.attention.output"),
        *norm(f"{there}.layernorm_after", f"{layer}.mlp_norm"),
        *linear(f"{there}.intermediate.dense", f"{layer}.mlp.up"),
        *linear(f"{there}.output.dense", f"{layer}.mlp.down"),
    )
