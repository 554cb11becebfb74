"""Llama (Touvron 2023), and what is shaped like it: SmolLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Tower
from unimodal.interop.families._heads import answers, joined, scores
from unimodal.interop.families.gpt2 import language_model
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def describe(config: Fields, names: Names, directory: Path) -> Description:
    return decoder(config, names, mlp_bias=config.get("mlp_bias", False), **biases(config))


def biases(config: Fields) -> dict[str, Any]:
    """True if attention matrices have biases, as config.json says of all of them at once."""
    bias = config.get("attention_bias", False)
    return dict(biased=ATTENTION if bias else (), qkv_bias=bias, output_bias=bias)


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
    # Read heads first: two other sizes default to what follows from them.
    heads = config.need("num_attention_heads")
    fields = dict(
        **config.sizes(),
        kv_heads=config.get("num_key_value_heads", heads),
        head_size=config.get("head_dim", width // heads),
        norm="rms",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope_theta(config),
        rope_scaling=rope_scaling(config),
        mlp_bias=mlp_bias,
    )
    if "activation" not in choices:
        choices["activation"] = config.gated("hidden_act", "silu")
    causal = config.get("is_causal", True)
    if not causal and choices.get("window") is not None:
        raise UsageError(f"{config.where}: is_causal=False with a sliding window is not supported")
    tower = Tower(
        "text",
        "text",
        "text",
        text.Config(vocabulary, scale=scaled),
        BackboneConfig(**{**fields, **choices}),
        causal=causal,
    )
    prefix = base(names)
    outputs, head = joined(scores(config, names, width), answers(names, width))
    if prefix and not outputs:
        outputs, head = language_model(config, width, vocabulary, "text", tied=tied)
    return Description((tower,), outputs, (*_rows(prefix, biased, mlp_bias), *extra, *head))


def base(names: Names) -> str:
    """The prefix of the decoder's tensors. Models that answer questions have another one."""
    return names.prefix("model.", "transformer.")


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


def rotary(config: Fields) -> Fields:
    """Read rotary positions from config.json. Newer files keep them in one group, but an older field wins over it."""
    part = config.part("rope_scaling" if config.raw("rope_scaling") else "rope_parameters")
    if any(isinstance(value, dict) for value in part.values.values()):
        raise UsageError(f"{part.where}: rotary positions that differ between layers are not supported")
    part.only("partial_rotary_factor", None, 1.0)
    return part


def rope_theta(config: Fields, usual: float = 10_000.0) -> float:
    return rotary(config).get("rope_theta", config.get("rope_theta", usual))


def rope_scaling(config: Fields) -> tuple[float, ...] | None:
    """(factor,) or (factor, low, high, length), as in BackboneConfig."""
    scaling = rotary(config)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return (_number(scaling, "factor"),)
    if kind == "llama3":
        # The length that it was first trained for: beside the rest, or among it, or that of today.
        where = config if config.raw("original_max_position_embeddings") else scaling
        if where.raw("original_max_position_embeddings") is not None:
            length = _number(where, "original_max_position_embeddings")
        else:
            length = float(config.need("max_position_embeddings"))
        return (*(_number(scaling, key) for key in ("factor", "low_freq_factor", "high_freq_factor")), length)
    raise UsageError(f"{scaling.where}: rope_type={kind!r} is not supported, only default, linear or llama3")


def _number(fields: Fields, key: str) -> float:
    value = fields.raw(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{fields.where}: {key} should be a number, but is {value!r}")
    return float(value)
