"""ELECTRA (Clark 2020): BERT's encoder behind narrower embeddings; discriminators and generators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output, Tower
from unimodal.interop.families.bert import embedding_rows, layer_rows, sentence_pooling, tower
from unimodal.interop.stages import Dense, Normed, Pool, Vocabulary
from unimodal.interop.table import Row, linear, norm, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix = names.prefix("electra.")
    made = narrower(tower(config), config, f"{prefix}embeddings_project.weight" in names)
    rows = [*embedding_rows(prefix, names), *layer_rows(f"{prefix}encoder.layer.{{layer}}", names)]
    if made.tokenizer.embedding_width is not None:
        rows += linear(f"{prefix}embeddings_project", "tokenizers.text.projection")
    outputs: list[Output] = []
    sentence = sentence_pooling(directory)
    if sentence is not None:
        outputs.append(Output("pooled", "text", sentence))
    more, head_rows = _heads(config, names)
    return Description((made,), (*outputs, *more), (*rows, *head_rows))


def narrower(tower: Tower, config: Fields, projected: bool) -> Tower:
    """The tower with its embeddings as narrow as `embedding_size` says, if they are projected."""
    if not projected:
        return tower
    width = config.get("embedding_size", 128)
    return replace(tower, tokenizer=replace(tower.tokenizer, embedding_width=width))


def _heads(config: Fields, names: Names) -> tuple[tuple[Output, ...], tuple[Row, ...]]:
    width, size = config.need("hidden_size"), config.get("embedding_size", 128)
    if "discriminator_predictions.dense.weight" in names:  # was this token replaced?
        activation = config.activation("hidden_act", "gelu")
        stages = (Dense("discriminator_hidden", width, width, activation), Dense("discriminator", width, 1))
        return (Output("logits", "text", stages),), (
            *linear("discriminator_predictions.dense", "heads.discriminator_hidden"),
            *linear("discriminator_predictions.dense_prediction", "heads.discriminator"),
        )
    if "generator_predictions.dense.weight" in names:
        config.only("tie_word_embeddings", True)
        stages = (
            Dense("masked_lm_transform", width, size, "gelu"),
            Normed("masked_lm_norm", size, config.get("layer_norm_eps", 1e-12)),
            Vocabulary("masked_lm", size, config.need("vocab_size"), bias=True),
        )
        return (Output("logits", "text", stages),), (
            *linear("generator_predictions.dense", "heads.masked_lm_transform"),
            *norm("generator_predictions.LayerNorm", "heads.masked_lm_norm"),
            same("generator_lm_head.bias", "heads.masked_lm.bias"),
            same("generator_lm_head.weight", "tokenizers.text.table.table", tied=True),
        )
    if "classifier.out_proj.weight" in names:
        classes = names.shape("classifier.out_proj.weight")[0]
        stages = (Pool(), Dense("classifier_hidden", width, width, "gelu"), Dense("classifier", width, classes))
        return (Output("logits", "text", stages),), (
            *linear("classifier.dense", "heads.classifier_hidden"),
            *linear("classifier.out_proj", "heads.classifier"),
        )
    if "classifier.weight" in names:  # one label per token
        classes = names.shape("classifier.weight")[0]
        return (Output("logits", "text", (Dense("classifier", width, classes),)),), linear(
            "classifier", "heads.classifier"
        )
    return (), ()
