"""CLIP (Radford 2021): both towers and their projections."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.vit import patch_rows, tokenizer
from unimodal.interop.stages import At, Dense, Normed, Pool, Similarity, Unit
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

# Files from before the end of text was configured say 2, and then it is the largest id.
OLD_END = 2


def describe(config: Fields, names: Names, directory: Path) -> Description:
    words, pixels = config.part("text_config"), config.part("vision_config")
    size, epsilon = config.get("projection_dim", 512), pixels.get("layer_norm_eps", 1e-5)
    width, pixels_width = words.get("hidden_size", 512), pixels.get("hidden_size", 768)
    end = words.get("eos_token_id", 49407)
    outputs = (
        Output("text_pooled", "text", (At(None if end == OLD_END else end),)),
        Output(
            "text_embedding", "text", (Dense("text_projection", width, size, bias=False), Unit()), start="text_pooled"
        ),
        Output("image_pooled", "image", (Pool(), Normed("image_norm", pixels_width, epsilon))),
        Output(
            "image_embedding",
            "image",
            (Dense("image_projection", pixels_width, size, bias=False), Unit()),
            start="image_pooled",
        ),
        Output(
            "logits",
            "image",
            (Similarity("similarity", "text_embedding"),),
            start="image_embedding",
            needs=("text_embedding",),
        ),
    )
    head_rows = (
        *norm("vision_model.post_layernorm", "heads.image_norm"),
        *linear("text_projection", "heads.text_projection", bias=False),
        *linear("visual_projection", "heads.image_projection", bias=False),
        same("logit_scale", "heads.similarity.log_scale"),
    )
    image_tokenizer = tokenizer(
        pixels, registers=1, bias=False, norm=True, norm_epsilon=epsilon, resize=True, dropout=0.0
    )
    towers = (
        text_tower(words, causal=True),
        Tower("image", "image", "image", image_tokenizer, encoder(pixels, 768, 12, final_norm=False)),
    )
    return Description(towers, outputs, (*text_rows(), *_image_rows(), *head_rows))


def text_tower(config: Fields, *, causal: bool) -> Tower:
    tokenizer = text.Config(config.get("vocab_size", 49408), max_length=config.get("max_position_embeddings", 77))
    return Tower("text", "text", "text", tokenizer, encoder(config, 512, 8), config.get("is_causal", causal))


def encoder(
    config: Fields, width: int, heads: int, activation: str = "quick_gelu", **choices: object
) -> BackboneConfig:
    """The part of config.json of one tower; its files leave out what is as in the first release."""
    width = config.get("hidden_size", width)
    fields = dict(
        width=width,
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", heads),
        mlp_width=config.get("intermediate_size", 4 * width),
        norm_epsilon=config.get("layer_norm_eps", 1e-5),
        activation=config.activation("hidden_act", activation),
        dropout=config.get("dropout", 0.0),
    )
    return BackboneConfig(**{**fields, **choices})  # pyright: ignore[reportArgumentType]


def text_rows() -> tuple[Row, ...]:
    return (
        same("text_model.embeddings.token_embedding.weight", "tokenizers.text.table.table"),
        same("text_model.embeddings.position_embedding.weight", "tokenizers.text.position_table.table"),
        *layer_rows("text_model.encoder.layers.{layer}", "backbones.text.layers"),
        *norm("text_model.final_layer_norm", "backbones.text.final_norm"),
    )


def _image_rows() -> tuple[Row, ...]:
    return (
        same("vision_model.embeddings.class_embedding", "tokenizers.image.registers.table"),
        *patch_rows("vision_model.embeddings.patch_embedding", "tokenizers.image", bias=False),
        same("vision_model.embeddings.position_embedding.weight", "tokenizers.image.position_table.table"),
        *norm("vision_model.pre_layrnorm", "tokenizers.image.norm"),
        *layer_rows("vision_model.encoder.layers.{layer}", "backbones.image.layers"),
    )


def layer_rows(there: str, ours: str) -> tuple[Row, ...]:
    return (
        *norm(f"{there}.layer_norm1", f"{ours}.attention_norm"),
        *attention_rows(f"{there}.self_attn", f"{ours}.attention"),
        *norm(f"{there}.layer_norm2", f"{ours}.mlp_norm"),
        *linear(f"{there}.mlp.fc1", f"{ours}.mlp.up"),
        *linear(f"{there}.mlp.fc2", f"{ours}.mlp.down"),
    )


def attention_rows(there: str, ours: str, *, key_bias: bool = True) -> tuple[Row, ...]:
    return (
        *linear(f"{there}.q_proj", f"{ours}.query"),
        *linear(f"{there}.k_proj", f"{ours}.key", bias=key_bias),
        *linear(f"{there}.v_proj", f"{ours}.value"),
        *linear(f"{there}.out_proj", f"{ours}.output"),
    )
