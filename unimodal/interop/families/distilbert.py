"""DistilBERT (Sanh 2019): a shallower BERT without sentence types."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.bert import sentence_pooling
from unimodal.interop.stages import Dense, MaskedVocabulary, Pool
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

EPSILON = 1e-12


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("distilbert."), config.need("dim")
    outputs: list[Output] = []
    rows: list[Row] = []
    sentence = sentence_pooling(directory)
    if sentence is not None:
        outputs.append(Output("pooled", "text", sentence))
    if "vocab_transform.weight" in names:
        activation = config.activation("activation", "gelu")
        head = MaskedVocabulary("masked_lm", width, config.need("vocab_size"), activation, EPSILON)
        outputs.append(Output("logits", "text", (head,)))
        rows += linear("vocab_transform", "heads.masked_lm.transform")
        rows += norm("vocab_layer_norm", "heads.masked_lm.norm")
        rows += [
            same("vocab_projector.bias", "heads.masked_lm.decoder.bias"),
            same("vocab_projector.weight", "tokenizers.text.table.table", tied=True),
        ]
    if "pre_classifier.weight" in names:
        classes = names.shape("classifier.weight")[0]
        stages = (Pool(), Dense("classifier_hidden", width, width, "relu"), Dense("classifier", width, classes))
        outputs.append(Output("logits", "text", stages))
        rows += [*linear("pre_classifier", "heads.classifier_hidden"), *linear("classifier", "heads.classifier")]
    return Description((_tower(config),), tuple(outputs), (*_rows(prefix), *rows))


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
        width=config.need("dim"),
        depth=config.need("n_layers"),
        heads=config.need("n_heads"),
        mlp_width=config.need("hidden_dim"),
        norm_position="post",
        norm_epsilon=EPSILON,
        activation=config.activation("activation", "gelu"),
        dropout=dropout,
        final_norm=False,
    )
    return Tower("text", "text", "text", tokenizer, backbone)


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
