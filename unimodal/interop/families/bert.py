"""BERT (Devlin 2019), and sentence-transformers made of it (Reimers 2019)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from unimodal.backbone import BackboneConfig
from unimodal.errors import UsageError
from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families._heads import Head, answers, classifier, joined
from unimodal.interop.files import read_json
from unimodal.interop.stages import Dense, Last, MaskedVocabulary, Pool, Stage, Unit
from unimodal.interop.table import Row, linear, norm, same
from unimodal.tokenizers import text

OURS = "backbones.text"
LAYER = f"{OURS}.layers"
MODULE = re.compile(r'"sentence_transformers[\w.]*\.(\w+)"')


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix = names.prefix("bert.")
    sentence = sentence_pooling(directory)
    outputs, rows = joined(pooler(config, names, prefix, sentence), heads(config, names, prefix, sentence))
    layers = layer_rows(f"{prefix}encoder.layer.{{layer}}", names)
    made = Description((tower(config),), outputs, (*embedding_rows(prefix, names), *layers, *rows))
    return replace(made, leftovers=leftovers(sentence))


def leftovers(sentence: tuple[Stage, ...] | None) -> tuple[str, ...]:
    """The first copy of a bias that is not tied is idle; so is the pooler of a sentence embedding, which pools otherwise."""
    idle = (r"(cls\.predictions|lm_head)\.bias",)
    return idle if sentence is None else (*idle, r"(\w+\.)?pooler\..*", r"cls\.seq_relationship\..*")


def tower(config: Fields, *, first_position: int = 0, pad_id: int | None = None) -> Tower:
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    epsilon = config.get("layer_norm_eps", 1e-12)
    tokenizer = text.Config(
        vocabulary=config.need("vocab_size"),
        max_length=config.get("max_position_embeddings", 512),
        types=config.get("type_vocab_size", 2),
        norm=True,
        norm_epsilon=epsilon,
        dropout=config.get("hidden_dropout_prob", 0.1),
    )
    backbone = BackboneConfig(
        **config.sizes(),
        norm_position="post",
        norm_epsilon=epsilon,
        activation=config.activation("hidden_act", "gelu"),
        dropout=config.get("hidden_dropout_prob", 0.1),
        final_norm=False,
    )
    causal = config.get("is_causal", False)
    return Tower("text", "text", "text", tokenizer, backbone, causal, first_position=first_position, pad_id=pad_id)


def embedding_rows(prefix: str, names: Names) -> tuple[Row, ...]:
    source = f"{prefix}embeddings"
    tables = (("word", "table"), ("position", "position_table"), ("token_type", "type_table"))
    return (
        *(same(f"{source}.{there}_embeddings.weight", f"tokenizers.text.{ours}.table") for there, ours in tables),
        *old_norm(f"{source}.LayerNorm", "tokenizers.text.norm", names),
    )


def layer_rows(source: str, names: Names, ours: str = LAYER) -> tuple[Row, ...]:
    return (
        *linear(f"{source}.attention.self.query", f"{ours}.attention.query"),
        *linear(f"{source}.attention.self.key", f"{ours}.attention.key"),
        *linear(f"{source}.attention.self.value", f"{ours}.attention.value"),
        *linear(f"{source}.attention.output.dense", f"{ours}.attention.output"),
        *old_norm(f"{source}.attention.output.LayerNorm", f"{ours}.attention_norm", names),
        *linear(f"{source}.intermediate.dense", f"{ours}.mlp.up"),
        *linear(f"{source}.output.dense", f"{ours}.mlp.down"),
        *old_norm(f"{source}.output.LayerNorm", f"{ours}.mlp_norm", names),
    )


def old_norm(source: str, ours: str, names: Names) -> tuple[Row, ...]:
    """The first checkpoints of 2018 call a norm's scale and bias gamma and beta."""
    if f"{source.replace('{layer}', '0')}.gamma" in names:
        return same(f"{source}.gamma", f"{ours}.scale"), same(f"{source}.beta", f"{ours}.bias")
    return norm(source, ours)


def pooler(config: Fields, names: Names, prefix: str, sentence: tuple[Stage, ...] | None) -> Head:
    """`pooled`: of a sentence-transformer as it says, else a tanh layer on the first token, if there is one."""
    width = config.need("hidden_size")
    if sentence is not None:
        return (Output("pooled", "text", sentence),), ()
    if f"{prefix}pooler.dense.weight" not in names:
        return (), ()
    found = Output("pooled", "text", (Pool(), Dense("pooler", width, width, "tanh")))
    return (found,), linear(f"{prefix}pooler.dense", "heads.pooler")


def start(config: Fields, names: Names, prefix: str, sentence: tuple[Stage, ...] | None) -> str:
    """The stage below a linear classifier, for one label per token or per text. Old models for tokens carry an idle pooler."""
    tokens = config.head("ForTokenClassification") or f"{prefix}pooler.dense.weight" not in names
    return "hidden" if tokens or sentence is not None else "pooled"


def heads(config: Fields, names: Names, prefix: str, sentence: tuple[Stage, ...] | None) -> Head:
    width = config.need("hidden_size")
    label = classifier(names, "text", width, "classifier", start=start(config, names, prefix, sentence))
    outputs, rows = joined(label, answers(names, width))
    if "cls.predictions.transform.dense.weight" in names:
        there, ours = "cls.predictions", "heads.masked_lm"
        head = masked_lm(config, names, there, config.activation("hidden_act", "gelu"))
        outputs, rows = joined((outputs, rows), head)
        rows += linear(f"{there}.transform.dense", f"{ours}.transform")
        rows += old_norm(f"{there}.transform.LayerNorm", f"{ours}.norm", names)
    if "cls.seq_relationship.weight" in names and sentence is None:
        outputs += (Output("next_sentence_logits", "text", (Dense("next_sentence", width, 2),), start="pooled"),)
        rows += linear("cls.seq_relationship", "heads.next_sentence")
    return outputs, rows


def masked_lm(config: Fields, names: Names, source: str, activation: str) -> Head:
    """`logits` of masked tokens. The last matrix is the table of embeddings unless config.json says otherwise; its bias
    is kept once or twice."""
    tied, epsilon = config.get("tie_word_embeddings", True), config.get("layer_norm_eps", 1e-12)
    head = MaskedVocabulary(
        "masked_lm", config.need("hidden_size"), config.need("vocab_size"), activation, epsilon, tied
    )
    outputs, bias = (Output("logits", "text", (head,)),), "heads.masked_lm.decoder.bias"
    if tied:
        return outputs, (
            same(f"{source}.decoder.weight", "tokenizers.text.table.table", tied=True),
            same(f"{source}.bias", bias),
            same(f"{source}.decoder.bias", bias, tied=True),
        )
    own = f"{source}.decoder.bias" if f"{source}.decoder.bias" in names else f"{source}.bias"
    return outputs, (*linear(f"{source}.decoder", "heads.masked_lm.decoder.linear", bias=False), same(own, bias))


def sentence_pooling(directory: Path) -> tuple[Stage, ...] | None:
    """Read how a sentence-transformers directory pools, from modules.json and 1_Pooling/config.json; None for others.

    Raises UsageError for what would give other embeddings than the published ones.
    """
    path = directory / "1_Pooling" / "config.json"
    if not path.exists():
        return None
    config = Fields(read_json(path), str(path))
    ways: dict[str, Stage] = {
        "pooling_mode_mean_tokens": Pool(stop=None),
        "pooling_mode_cls_token": Pool(),
        "pooling_mode_lasttoken": Last(real=True),
    }
    for key in config.values:
        if key.startswith("pooling_mode_") and key not in ways:
            config.only(key, False)
    chosen = [stage for key, stage in ways.items() if config.get(key, False)]
    if len(chosen) != 1:
        raise UsageError(f"{path} should turn on one of {', '.join(ways)}, but turns on {len(chosen)}")
    modules = directory / "modules.json"
    kinds = MODULE.findall(modules.read_text(encoding="utf-8", errors="replace")) if modules.exists() else []
    if further := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise UsageError(f"{modules}: {' and '.join(sorted(further))} after the pooling is not supported")
    return (*chosen, Unit()) if "Normalize" in kinds else tuple(chosen)
