"""GPT-2 (Radford 2019)."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families._heads import Head, answers, classifier, joined, scores
from unimodal.interop.stages import Vocabulary
from unimodal.interop.table import Row, fused, linear, norm, same
from unimodal.tokenizers import text

ACTIVATION = "gelu_new"
# The triangle of who sees whom, and what to write where nobody does.
MASKS = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)


def describe(config: Fields, names: Names, directory: Path) -> Description:
    width, vocabulary = config.need("n_embd"), config.need("vocab_size")
    prefix = names.prefix("transformer.")
    outputs, head = joined(
        scores(config, names, width), classifier(names, "text", width, "classifier"), answers(names, width)
    )
    # A file of the bare model holds the same tensors as one with the tied head: config.json tells them apart.
    if config.head("LMHeadModel") or config.head("DoubleHeadsModel") or (prefix and not outputs):
        outputs, head = joined((outputs, head), language_model(config, width, vocabulary, "text"))
    made = tower(config, "text", causal=config.get("is_causal", True))
    return Description((made,), outputs, (*rows(prefix, "text"), *head), MASKS)


def language_model(config: Fields, width: int, vocabulary: int, name: str, *, tied: bool = True) -> Head:
    """`logits` through the table of embeddings, or through a matrix of its own if config.json says so; tied: by default."""
    tied = config.get("tie_word_embeddings", tied)
    head = linear("lm_head", "heads.lm.linear", bias=False)
    if tied:
        head = (same("lm_head.weight", f"tokenizers.{name}.table.table", tied=True),)
    return (Output("logits", name, (Vocabulary("lm", width, vocabulary, tied),)),), head


def tower(config: Fields, name: str, *, causal: bool = True, **choices: object) -> Tower:
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("scale_attn_weights", True)
    width, dropout = config.need("n_embd"), config.get("resid_pdrop", 0.1)
    fields = dict(
        width=width,
        depth=config.need("n_layer"),
        heads=config.need("n_head"),
        mlp_width=config.get("n_inner", 4 * width),
        norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        activation=config.activation("activation_function", ACTIVATION),
        dropout=dropout,
    )
    tokenizer = text.Config(config.need("vocab_size"), max_length=config.get("n_positions", 1024), dropout=dropout)
    backbone = BackboneConfig(**{**fields, **choices})
    # Places are counted as published models write: a row that is padded on the left begins where its text does.
    return Tower(name, name, "text", tokenizer, backbone, causal=causal, skip_padding=True)


def rows(prefix: str, name: str, *, bias: bool = True) -> tuple[Row, ...]:
    """`bias`: of the norms. Its matrices are kept [inputs, outputs], like ours."""
    there, layer = f"{prefix}h.{{layer}}", f"backbones.{name}.layers"
    attention = [f"{layer}.attention.{part}" for part in ("query", "key", "value")]
    return (
        same(f"{prefix}wte.weight", f"tokenizers.{name}.table.table"),
        same(f"{prefix}wpe.weight", f"tokenizers.{name}.position_table.table"),
        *norm(f"{there}.ln_1", f"{layer}.attention_norm", bias=bias),
        *fused(f"{there}.attn.c_attn", attention, permute=None),
        *fused(f"{there}.attn.c_proj", [f"{layer}.attention.output"], permute=None),
        *norm(f"{there}.ln_2", f"{layer}.mlp_norm", bias=bias),
        *fused(f"{there}.mlp.c_fc", [f"{layer}.mlp.up"], permute=None),
        *fused(f"{there}.mlp.c_proj", [f"{layer}.mlp.down"], permute=None),
        *norm(f"{prefix}ln_f", f"backbones.{name}.final_norm", bias=bias),
    )
