"""DINOv2 (Oquab 2023): ViT with layer scale, whose positions fit any picture."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.vit import MASK, backbone, embedding_rows, qkv_bias, tokenizer
from unimodal.interop.stages import Both, Dense, Pool
from unimodal.interop.table import Row, fused, linear, norm, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return dino(config, names, names.prefix("dinov2."), registers=0)


def dino(config: Fields, names: Names, prefix: str, *, registers: int) -> Description:
    outputs, rows = [Output("pooled", "image", (Pool(),))], []
    width = config.need("hidden_size")
    if "classifier.weight" in names:
        classes = names.shape("classifier.weight")[0]
        stages = (Both(Pool(), Pool(1 + registers, None)), Dense("classifier", 2 * width, classes))
        outputs.append(Output("logits", "image", stages))
        rows += linear("classifier", "heads.classifier")
    if registers:
        rows.append(same(f"{prefix}embeddings.register_tokens", "tokenizers.image.plain_registers.table"))
    gated = config.get("use_swiglu_ffn", False)
    down = f"{prefix}encoder.layer.0.mlp.{'weights_out' if gated else 'fc2'}.weight"
    choices = dict(layer_scale=config.get("layerscale_value", 1.0), norm_epsilon=config.get("layer_norm_eps", 1e-6))
    if down in names:
        choices["mlp_width"] = names.shape(down)[1]
    if gated:
        choices["activation"] = "swiglu"
    # The published code resizes positions with antialiasing only where there are registers.
    pixels = tokenizer(config, plain_registers=registers, resize=True, antialias=registers > 0)
    tower = Tower("image", "image", "image", pixels, backbone(config, **choices))
    encoder = _rows(prefix, gated, bias=qkv_bias(config))
    return Description((tower,), tuple(outputs), (*embedding_rows(prefix), *encoder, *rows), MASK)


def _rows(prefix: str, gated: bool, *, bias: bool) -> tuple[Row, ...]:
    there, ours = f"{prefix}encoder.layer.{{layer}}", "backbones.image.layers"
    rows: list[Row] = [*norm(f"{there}.norm1", f"{ours}.attention_norm"), *norm(f"{there}.norm2", f"{ours}.mlp_norm")]
    for part in ("query", "key", "value"):
        rows += linear(f"{there}.attention.attention.{part}", f"{ours}.attention.{part}", bias=bias)
    rows += linear(f"{there}.attention.output.dense", f"{ours}.attention.output")
    rows += [
        same(f"{there}.layer_scale1.lambda1", f"{ours}.attention_scale"),
        same(f"{there}.layer_scale2.lambda1", f"{ours}.mlp_scale"),
    ]
    if gated:
        rows += fused(f"{there}.mlp.weights_in", (f"{ours}.mlp.gate", f"{ours}.mlp.up"))
        rows += linear(f"{there}.mlp.weights_out", f"{ours}.mlp.down")
    else:
        rows += [*linear(f"{there}.mlp.fc1", f"{ours}.mlp.up"), *linear(f"{there}.mlp.fc2", f"{ours}.mlp.down")]
    return (*rows, *norm(f"{prefix}layernorm", "backbones.image.final_norm"))
