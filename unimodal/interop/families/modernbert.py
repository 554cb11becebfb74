"""ModernBERT (Warner 2024): an encoder with rotary positions, gated MLPs, and windows in two of three layers."""

from __future__ import annotations

from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families._layers import FULL, NARROW, layer_types, rope_of, windows
from unimodal.interop.families.bert import sentence_pooling
from unimodal.interop.families.llama import rope_scaling, rope_theta
from unimodal.interop.stages import Dense, Normed, Pool, Stage, Vocabulary
from unimodal.interop.table import TRANSPOSE, Row, fused, linear, norm, same
from unimodal.tokenizers import text


def describe(config: Fields, names: Names, directory: Path) -> Description:
    outputs: list[Output] = []
    sentence = sentence_pooling(directory)
    if sentence is not None:
        outputs.append(Output("pooled", "text", sentence))
    more, rows = _heads(config, names)
    return Description((_tower(config),), (*outputs, *more), (*_rows(config, names.prefix("model.")), *rows))


def _tower(config: Fields) -> Tower:
    config.only("is_causal", None, False)
    every, depth = config.get("global_attn_every_n_layers", 3), config.need("num_hidden_layers")
    kinds = layer_types(config, [NARROW if i % every else FULL for i in range(depth)])
    # So many tokens to either side of the token itself, which ours counts as well.
    narrow = windows(kinds, config.get("local_attention", 128) // 2 + 1)
    far, near = (
        rope_of(config, kind, f"{where}_rope_theta", usual)
        for kind, where, usual in ((FULL, "global", 160_000.0), (NARROW, "local", 10_000.0))
    )
    near.part("rope_parameters").only("rope_type", "default")
    epsilon, bias = config.get("norm_eps", 1e-5), config.get("attention_bias", False)
    tokenizer = text.Config(
        vocabulary=config.need("vocab_size"),
        norm=True,
        norm_epsilon=epsilon,
        norm_bias=config.get("norm_bias", False),
        dropout=config.get("embedding_dropout", 0.0),
    )
    backbone = BackboneConfig(
        **config.sizes(),
        norm_epsilon=epsilon,
        norm_bias=config.get("norm_bias", False),
        first_attention_norm=False,
        activation=config.gated("hidden_activation", "gelu"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.get("mlp_bias", False),
        rope_theta=rope_theta(far),
        rope_scaling=rope_scaling(far),
        window_rope_theta=rope_theta(near) if narrow else None,
        **narrow,
    )
    return Tower("text", "text", "text", tokenizer, backbone)


def _rows(config: Fields, prefix: str) -> tuple[Row, ...]:
    there, ours = f"{prefix}layers.{{layer}}", "backbones.text.layers"
    norms, bias, mlp_bias = (config.get(f"{what}_bias", False) for what in ("norm", "attention", "mlp"))
    qkv = [f"{ours}.attention.{part}" for part in ("query", "key", "value")]
    rows = [same(f"{there}.attn_norm.weight", f"{ours}.attention_norm.scale", first=1, before=1.0)]
    if norms:
        rows.append(same(f"{there}.attn_norm.bias", f"{ours}.attention_norm.bias", first=1))
    return (
        same(f"{prefix}embeddings.tok_embeddings.weight", "tokenizers.text.table.table"),
        *norm(f"{prefix}embeddings.norm", "tokenizers.text.norm", bias=norms),
        *rows,
        *fused(f"{there}.attn.Wqkv", qkv, bias=bias),
        *linear(f"{there}.attn.Wo", f"{ours}.attention.output", bias=bias),
        *norm(f"{there}.mlp_norm", f"{ours}.mlp_norm", bias=norms),
        *fused(f"{there}.mlp.Wi", (f"{ours}.mlp.gate", f"{ours}.mlp.up"), bias=mlp_bias),
        *linear(f"{there}.mlp.Wo", f"{ours}.mlp.down", bias=mlp_bias),
        *norm(f"{prefix}final_norm", "backbones.text.final_norm", bias=norms),
    )


def _heads(config: Fields, names: Names) -> tuple[tuple[Output, ...], tuple[Row, ...]]:
    """A dense layer and a norm, then the vocabulary or the classes."""
    if "head.dense.weight" not in names:
        return (), ()
    width, vocabulary = config.need("hidden_size"), config.need("vocab_size")
    bias, norms = config.get("classifier_bias", False), config.get("norm_bias", False)
    head: tuple[Stage, ...] = (
        Dense("head", width, width, config.activation("classifier_activation", "gelu"), bias=bias),
        Normed("head_norm", width, config.get("norm_eps", 1e-5), bias=norms),
    )
    rows: list[Row] = [
        *linear("head.dense", "heads.head", bias=bias),
        *norm("head.norm", "heads.head_norm", bias=norms),
    ]
    if "classifier.weight" in names:
        config.only("classifier_pooling", "cls", "mean")
        # Answers and labels of tokens, or a label of the text: the tensors are the same.
        made_for = " ".join(config.get("architectures", []))
        pool = Pool(stop=1 if config.get("classifier_pooling", "cls") == "cls" else None)
        classes = Dense("classifier", width, names.shape("classifier.weight")[0])
        rows += linear("classifier", "heads.classifier")
        answers, of_tokens = "QuestionAnswering" in made_for, "TokenClassification" in made_for
        stages = (*head, classes) if answers or of_tokens else (pool, *head, classes)
        return (Output("answer_logits" if answers else "logits", "text", stages),), tuple(rows)
    tied, decoder_bias = config.get("tie_word_embeddings", True), config.get("decoder_bias", True)
    if tied:
        rows.append(same("decoder.weight", "tokenizers.text.table.table", tied=True))
    else:
        rows.append(Row("decoder.weight", "heads.masked_lm.linear.kernel", permute=TRANSPOSE))
    if decoder_bias:
        rows.append(same("decoder.bias", "heads.masked_lm.bias"))
    stages = (*head, Vocabulary("masked_lm", width, vocabulary, tied, bias=decoder_bias))
    return (Output("logits", "text", stages),), tuple(rows)
