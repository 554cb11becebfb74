"""ALBERT (Lan 2020): BERT's encoder with narrower embeddings, and one layer used over and over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.bert import sentence_pooling, tower
from unimodal.interop.families.electra import narrower
from unimodal.interop.stages import Dense, Normed, Pool, Vocabulary
from unimodal.interop.table import Row, linear, norm, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    config.only("num_hidden_groups", 1)
    config.only("inner_group_num", 1)
    prefix = names.prefix("albert.")
    made = narrower(tower(Fields({"hidden_act": "gelu_new"} | dict(config.values), config.where)), config, True)
    made = replace(made, backbone=replace(made.backbone, shared_layers=True))
    outputs, rows = _heads(config, names, prefix)
    sentence = sentence_pooling(directory)
    if sentence is not None:
        outputs, rows = (Output("pooled", "text", sentence),), ()
    leftovers = () if sentence is None else (r"(\w+\.)?pooler\..*", r"predictions\..*", r"sop_classifier\..*")
    return Description((made,), outputs, (*_rows(prefix), *rows), leftovers)


def _rows(prefix: str) -> tuple[Row, ...]:
    embeddings, ours = f"{prefix}embeddings", "backbones.text.layers"
    there = f"{prefix}encoder.albert_layer_groups.{{layer}}.albert_layers.0"
    tables = (("word", "table"), ("position", "position_table"), ("token_type", "type_table"))
    rows = [same(f"{embeddings}.{name}_embeddings.weight", f"tokenizers.text.{part}.table") for name, part in tables]
    for part in ("query", "key", "value"):
        rows += linear(f"{there}.attention.{part}", f"{ours}.attention.{part}")
    return (
        *rows,
        *norm(f"{embeddings}.LayerNorm", "tokenizers.text.norm"),
        *linear(f"{prefix}encoder.embedding_hidden_mapping_in", "tokenizers.text.projection"),
        *linear(f"{there}.attention.dense", f"{ours}.attention.output"),
        *norm(f"{there}.attention.LayerNorm", f"{ours}.attention_norm"),
        *linear(f"{there}.ffn", f"{ours}.mlp.up"),
        *linear(f"{there}.ffn_output", f"{ours}.mlp.down"),
        *norm(f"{there}.full_layer_layer_norm", f"{ours}.mlp_norm"),
    )


def _heads(config: Fields, names: Names, prefix: str) -> tuple[tuple[Output, ...], tuple[Row, ...]]:
    width, size = config.need("hidden_size"), config.get("embedding_size", 128)
    outputs: list[Output] = []
    rows: list[Row] = []
    if f"{prefix}pooler.weight" in names:
        outputs.append(Output("pooled", "text", (Pool(), Dense("pooler", width, width, "tanh"))))
        rows += linear(f"{prefix}pooler", "heads.pooler")
    if "predictions.dense.weight" in names:
        config.only("tie_word_embeddings", True)
        activation, epsilon = config.activation("hidden_act", "gelu_new"), config.get("layer_norm_eps", 1e-12)
        stages = (
            Dense("masked_lm_transform", width, size, activation),
            Normed("masked_lm_norm", size, epsilon),
            Vocabulary("masked_lm", size, config.need("vocab_size"), bias=True),
        )
        outputs.append(Output("logits", "text", stages))
        rows += [
            *linear("predictions.dense", "heads.masked_lm_transform"),
            *norm("predictions.LayerNorm", "heads.masked_lm_norm"),
            same("predictions.bias", "heads.masked_lm.bias"),
            same("predictions.decoder.weight", "tokenizers.text.table.table", tied=True),
            same("predictions.decoder.bias", "heads.masked_lm.bias", tied=True),
        ]
    if "sop_classifier.classifier.weight" in names:  # were the two sentences swapped?
        outputs.append(Output("sentence_order_logits", "text", (Dense("sentence_order", width, 2),), start="pooled"))
        rows += linear("sop_classifier.classifier", "heads.sentence_order")
    if "classifier.weight" in names:
        classes = names.shape("classifier.weight")[0]
        start = "pooled" if f"{prefix}pooler.weight" in names else "hidden"  # one label per text, or per token
        outputs.append(Output("logits", "text", (Dense("classifier", width, classes),), start=start))
        rows += linear("classifier", "heads.classifier")
    return tuple(outputs), tuple(rows)
