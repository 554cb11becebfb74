"""RoBERTa (Liu 2019): BERT's encoder; positions are counted from after the padding id."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.bert import embedding_rows, layer_rows, sentence_pooling, tower
from unimodal.interop.stages import Dense, MaskedVocabulary, Pool
from unimodal.interop.table import Row, linear, norm, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width, pad = names.prefix("roberta."), config.need("hidden_size"), config.get("pad_token_id", 1)
    outputs: list[Output] = []
    rows: list[Row] = []
    sentence = sentence_pooling(directory)
    if sentence is not None:
        outputs.append(Output("pooled", "text", sentence))
    elif f"{prefix}pooler.dense.weight" in names:
        outputs.append(Output("pooled", "text", (Pool(), Dense("pooler", width, width, "tanh"))))
        rows += linear(f"{prefix}pooler.dense", "heads.pooler")
    if "lm_head.dense.weight" in names:
        head = MaskedVocabulary(
            "masked_lm", width, config.need("vocab_size"), "gelu", config.get("layer_norm_eps", 1e-5)
        )
        outputs.append(Output("logits", "text", (head,)))
        rows += linear("lm_head.dense", "heads.masked_lm.transform")
        rows += norm("lm_head.layer_norm", "heads.masked_lm.norm")
        rows += [
            same("lm_head.bias", "heads.masked_lm.decoder.bias"),
            same("lm_head.decoder.weight", "tokenizers.text.table.table", tied=True),
            same("lm_head.decoder.bias", "heads.masked_lm.decoder.bias", tied=True),
        ]
    if "classifier.out_proj.weight" in names:
        classes = names.shape("classifier.out_proj.weight")[0]
        stages = (Pool(), Dense("classifier_hidden", width, width, "tanh"), Dense("classifier", width, classes))
        outputs.append(Output("logits", "text", stages))
        rows += linear("classifier.dense", "heads.classifier_hidden")
        rows += linear("classifier.out_proj", "heads.classifier")
    elif "classifier.weight" in names:  # one label per token
        outputs.append(Output("logits", "text", (Dense("classifier", width, names.shape("classifier.weight")[0]),)))
        rows += linear("classifier", "heads.classifier")
    layers = layer_rows(f"{prefix}encoder.layer.{{layer}}", names)
    made = tower(config, first_position=pad + 1, pad_id=pad)
    return Description((made,), tuple(outputs), (*embedding_rows(prefix, names), *layers, *rows))
