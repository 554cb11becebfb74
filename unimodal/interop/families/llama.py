"""Llama (Touvron 2023), and what is shaped like it: SmolLM."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.stages import Vocabulary
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text


def describe(config: Fields, names: Names, directory: Path) -> Description:
    bias = config.get("attention_bias", False)
    mlp_bias = config.get("mlp_bias", False)
    biased = tuple(part for part in ("q_proj", "k_proj", "v_proj", "o_proj") if bias)
    return decoder(config, names, biased=biased, mlp_bias=mlp_bias, qkv_bias=bias, output_bias=bias)


def decoder(
    config: Fields,
    names: Names,
    *,
    biased: tuple[str, ...] = (),
    mlp_bias: bool = False,
    extra: tuple[Row, ...] = (),
    scaled: bool = False,
    tied: bool = False,
    **choices: object,
) -> Description:
    """A decoder with these names of tensors. biased: attention matrices with a bias; extra: rows of further layer norms;
    scaled: embeddings times √D; tied: by default; choices: fields of the BackboneConfig."""
    width, vocabulary = config.need("hidden_size"), config.need("vocab_size")
    heads = config.need("num_attention_heads")
    fields = dict(
        width=width,
        depth=config.need("num_hidden_layers"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_size=config.get("head_dim", width // heads),
        mlp_width=config.need("intermediate_size"),
        norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope_theta(config),
        rope_scaling=rope_scaling(config),
        mlp_bias=mlp_bias,
    )
    if "activation" not in choices:
        choices["activation"] = config.gated("hidden_act", "silu")
    tower = Tower(
        "text",
        "text",
        "text",
        text.Config(vocabulary, scale=scaled),
        BackboneConfig(**{**fields, **choices}),
        causal=True,
    )
    prefix = names.prefix("model.")
    tied = config.get("tie_word_embeddings", tied)
    outputs: tuple[Output, ...] = ()
    head: tuple[Row, ...] = ()
    if prefix:
        outputs = (Output("logits", "text", (Vocabulary("lm", width, vocabulary, tied),)),)
        head = (
            (same("lm_head.weight", "tokenizers.text.table.table", tied=True),)
            if tied
            else linear("lm_head", "heads.lm.linear", bias=False)
        )
    return Description((tower,), outputs, (*_rows(prefix, biased, mlp_bias), *extra, *head))


def _rows(prefix: str, biased: tuple[str, ...], mlp_bias: bool) -> tuple[Row, ...]:
    there, ours = f"{prefix}layers.{{layer}}", "backbones.text.layers"
    attention = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output"))
    rows = [same(f"{prefix}embed_tokens.weight", "tokenizers.text.table.table")]
    for name, part in attention:
        rows += linear(f"{there}.self_attn.{name}", f"{ours}.attention.{part}", bias=name in biased)
    for part in ("gate", "up", "down"):
        rows += linear(f"{there}.mlp.{part}_proj", f"{ours}.mlp.{part}", bias=mlp_bias)
    rows += norm(f"{there}.input_layernorm", f"{ours}.attention_norm", bias=False)
    rows += norm(f"{there}.post_attention_layernorm", f"{ours}.mlp_norm", bias=False)
    return (*rows, *norm(f"{prefix}norm", "backbones.text.final_norm", bias=False))


def rope_theta(config: Fields) -> float:
    """Newer files keep what concerns rotary positions together."""
    return config.part("rope_parameters").get("rope_theta", config.get("rope_theta", 10_000.0))


def rope_scaling(config: Fields) -> tuple[float, ...] | None:
    """(factor,) or (factor, low, high, length), as in BackboneConfig."""
    name = "rope_parameters" if config.raw("rope_parameters") else "rope_scaling"
    scaling = config.part(name)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return (scaling.get("factor", 1.0),)
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor")
        length = scaling.get("original_max_position_embeddings", 8192)
        return (*(scaling.get(key, 1.0) for key in keys), float(length))
    raise UsageError(f"{scaling.where}: rope_type={kind!r} is not supported, only default, linear or llama3")
