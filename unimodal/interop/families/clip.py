"""CLIP (Radford 2021): both towers and their projections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.heads import Embed
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.vit import patch_rows, tokenizer
from unimodal.interop.stages import Embedded, Similarity
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

# Files from before the end of text was configured say 2, and then it is the largest id.
OLD_END = 2
PROJECTIONS = {"text": "text_projection", "image": "visual_projection"}


def describe(config: Fields, names: Names, directory: Path) -> Description:
    words, pixels = config.part("text_config"), config.part("vision_config")
    size, epsilon = config.get("projection_dim", 512), pixels.get("layer_norm_eps", 1e-5)
    end = words.get("eos_token_id", 49407)
    image_tokenizer = tokenizer(
        pixels, registers=1, bias=False, norm=True, norm_epsilon=epsilon, resize=True, dropout=0.0
    )
    towers = (
        text_tower(words, causal=True),
        Tower("image", "image", "image", image_tokenizer, encoder(pixels, 768, 12, final_norm=False)),
    )
    project = {name: alone(config) is None or f"{there}.weight" in names for name, there in PROJECTIONS.items()}
    reader = Embed("end", end=None if end == OLD_END else end, project=project["text"])
    viewer = Embed("first", norm=epsilon, project=project["image"])
    outputs = (
        *embeddings(towers[0], size, reader),
        *embeddings(towers[1], size, viewer),
        compared(Similarity("temperature", "text_embedding")),
    )
    head_rows = (
        *norm("vision_model.post_layernorm", "heads.image.norm"),
        *(
            row
            for name, there in PROJECTIONS.items()
            for row in (linear(there, f"heads.{name}.linear", bias=False) if project[name] else ())
        ),
        same("logit_scale", "heads.temperature.log_scale"),
    )
    return Description(towers, outputs, (*text_rows(), *_image_rows(), *head_rows))


def alone(config: Fields) -> str | None:
    """Which of the two towers this is the config of, if it is of one only: such files may lack the projection."""
    there = [name for name in ("text", "vision") if config.raw(f"{name}_config") is not None]
    return there[0] if len(there) == 1 else None


def embeddings(tower: Tower, size: int, config: Embed, *, pooled: str = "pooled") -> tuple[Output, ...]:
    """`…_pooled`, which is what the head `pooled` has, and, if that is not all, `…_embedding` of unit length."""
    name, width = tower.name, tower.backbone.width
    whole = Embedded(name, width, size, config, tower.backbone)
    first = Output(f"{name}_pooled", name, (replace(whole, part=pooled),))
    return (first, Output(f"{name}_embedding", name, (whole,))) if config.project or pooled != "pooled" else (first,)


def compared(stage: Similarity) -> Output:
    """`logits` [images,texts]."""
    return Output("logits", "image", (stage,), start="image_embedding", needs=("text_embedding",))


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
