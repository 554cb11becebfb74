"""DistilBERT (Sanh 2019): a shallower BERT without sentence types."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families._heads import Head, answers, classifier, joined
from unimodal.interop.families.bert import sentence_pooling
from unimodal.interop.stages import Dense, MaskedVocabulary, Pool
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

EPSILON = 1e-12


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("distilbert."), config.need("dim")
    found = [answers(names, width)]
    sentence = sentence_pooling(directory)
    if sentence is not None:
        found.append(((Output("pooled", "text", sentence),), ()))
    if "vocab_transform.weight" in names:
        found.append(_masked_lm(config, width))
    if "pre_classifier.weight" in names:
        before = (Pool(), Dense("classifier_hidden", width, width, "relu"))
        found.append(((), linear("pre_classifier", "heads.classifier_hidden")))
        found.append(classifier(names, "text", width, "classifier", before=before))
    else:
        found.append(classifier(names, "text", width, "classifier"))
    outputs, rows = joined(*found)
    return Description((_tower(config),), outputs, (*_rows(prefix), *rows))


def _masked_lm(config: Fields, width: int) -> Head:
    activation, tied = config.activation("activation", "gelu"), config.get("tie_word_embeddings", True)
    head = MaskedVocabulary("masked_lm", width, config.need("vocab_size"), activation, EPSILON, tied)
    ours = "heads.masked_lm"
    matrix = linear("vocab_projector", f"{ours}.decoder.linear", bias=False)
    if tied:
        matrix = (same("vocab_projector.weight", "tokenizers.text.table.table", tied=True),)
    rows = (
        *linear("vocab_transform", f"{ours}.transform"),
        *norm("vocab_layer_norm", f"{ours}.norm"),
        same("vocab_projector.bias", f"{ours}.decoder.bias"),
        *matrix,
    )
    return (Output("logits", "text", (head,)),), rows


def _tower(config: Fields) -> Tower:
    dropout = config.get("dropout", 0.1)
    tokenizer = text.Config(
        vocabulary=config.need("vocab_size"),
        max_length=config.get("max_position_embeddings", 512),
        norm=True,
        norm_epsilon=EPSILON,
        dropout=dropout,
    )
    backbone = BackboneConfig(
        **config.sizes("dim", "n_layers", "n_heads", "hidden_dim"),
        norm_position="post",
        norm_epsilon=EPSILON,
        activation=config.activation("activation", "gelu"),
        dropout=dropout,
        final_norm=False,
    )
    return Tower("text", "text", "text", tokenizer, backbone, causal=config.get("is_causal", False))


def _rows(prefix: str) -> tuple[Row, ...]:
    there, ours = f"{prefix}transformer.layer.{{layer}}", "backbones.text.layers"
    return (
        same(f"{prefix}embeddings.word_embeddings.weight", "tokenizers.text.table.table"),
        same(f"{prefix}embeddings.position_embeddings.weight", "tokenizers.text.position_table.table"),
        *norm(f"{prefix}embeddings.LayerNorm", "tokenizers.text.norm"),
        *linear(f"{there}.attention.q_lin", f"{ours}.attention.query"),
        *linear(f"{there}.attention.k_lin", f"{ours}.attention.key"),
        *linear(f"{there}.attention.v_lin", f"{ours}.attention.value"),
        *linear(f"{there}.attention.out_lin", f"{ours}.attention.output"),
        *norm(f"{there}.sa_layer_norm", f"{ours}.attention_norm"),
        *linear(f"{there}.ffn.lin1", f"{ours}.mlp.up"),
        *linear(f"{there}.ffn.lin2", f"{ours}.mlp.down"),
        *norm(f"{there}.output_layer_norm", f"{ours}.mlp_norm"),
    )
