"""SigLIP (Zhai 2023): two towers, an attention-pooled picture, a sigmoid for each pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimodal.heads import Embed
from unimodal.interop.describe import Description, Fields, Names, Tower
from unimodal.interop.families.clip import compared, embeddings, encoder, layer_rows, text_rows
from unimodal.interop.families.vit import patch_rows, tokenizer
from unimodal.interop.stages import Similarity
from unimodal.interop.table import TRANSPOSE, Row, linear, norm, same
from unimodal.tokenizers import text


def describe(config: Fields, names: Names, directory: Path) -> Description:
    words, pixels = config.part("text_config"), config.part("vision_config")
    width = words.get("hidden_size", 768)
    names_and_sizes: dict[str, Any] = dict(
        activation="gelu_pytorch_tanh", norm_epsilon=words.get("layer_norm_eps", 1e-6), dropout=0.0
    )
    reader = encoder(words, 768, 12, **names_and_sizes)
    viewer = encoder(pixels, 768, 12, **{**names_and_sizes, "norm_epsilon": pixels.get("layer_norm_eps", 1e-6)})
    vocabulary = text.Config(words.get("vocab_size", 32000), max_length=words.get("max_position_embeddings", 64))
    patches = tokenizer(pixels, registers=0, resize=True, dropout=0.0)
    towers = (
        Tower(
            "text",
            "text",
            "text",
            vocabulary,
            reader,
            words.get("is_causal", False),
            masked=False,
            fill_id=words.get("pad_token_id", 1),
        ),
        Tower("image", "image", "image", patches, viewer),
    )
    size = words.get("projection_size", width)
    outputs = (
        *embeddings(towers[0], size, Embed("final", bias=True), pooled="projected"),
        *embeddings(towers[1], size, Embed("attention", project=False), pooled="projected"),
        compared(Similarity("temperature", "text_embedding", bias=True)),
    )
    rows = (
        *text_rows(),
        *linear("text_model.head", "heads.text.linear"),
        *patch_rows("vision_model.embeddings.patch_embedding", "tokenizers.image"),
        same("vision_model.embeddings.position_embedding.weight", "tokenizers.image.position_table.table"),
        *layer_rows("vision_model.encoder.layers.{layer}", "backbones.image.layers"),
        *norm("vision_model.post_layernorm", "backbones.image.final_norm"),
        *_pool_rows("vision_model.head", "heads.image.attention"),
        same("logit_scale", "heads.temperature.log_scale"),
        same("logit_bias", "heads.temperature.bias"),
    )
    return Description(towers, outputs, rows)


def _pool_rows(there: str, ours: str) -> tuple[Row, ...]:
    rows = [same(f"{there}.probe", f"{ours}.probe")]
    for i, part in enumerate(("query", "key", "value")):
        path = f"{ours}.attention.{part}"
        rows.append(Row(f"{there}.attention.in_proj_weight", f"{path}.kernel", permute=TRANSPOSE, part=(i, 3)))
        rows.append(Row(f"{there}.attention.in_proj_bias", f"{path}.bias", part=(i, 3)))
    return (
        *rows,
        *linear(f"{there}.attention.out_proj", f"{ours}.attention.output"),
        *norm(f"{there}.layernorm", f"{ours}.norm"),
        *linear(f"{there}.mlp.fc1", f"{ours}.mlp.up"),
        *linear(f"{there}.mlp.fc2", f"{ours}.mlp.down"),
    )
