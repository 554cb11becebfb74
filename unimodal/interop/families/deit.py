"""DeiT (Touvron 2021): ViT with a second learned token, which a teacher taught."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.vit import MASK, embedding_rows, encoder_rows, qkv_bias, tower
from unimodal.interop.stages import Dense, Pool
from unimodal.interop.table import Row, linear, same


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width = names.prefix("deit."), config.need("hidden_size")
    outputs: list[Output] = []
    rows: list[Row] = [same(f"{prefix}embeddings.distillation_token", "tokenizers.image.registers.table", rows=(1, 2))]
    if f"{prefix}pooler.dense.weight" in names:
        outputs.append(
            Output("pooled", "image", (Pool(), Dense("pooler", width, width, config.activation("pooler_act", "tanh"))))
        )
        rows += linear(f"{prefix}pooler.dense", "heads.pooler")
    for token, name in enumerate(("cls_classifier", "distillation_classifier")):
        if f"{name}.weight" in names:
            classes = names.shape(f"{name}.weight")[0]
            outputs.append(Output(f"{name}_logits", "image", (Pool(token, token + 1), Dense(name, width, classes))))
            rows += linear(name, f"heads.{name}")
    if "cls_classifier.weight" in names:
        both = ("cls_classifier_logits", "distillation_classifier_logits")
        outputs.append(Output("logits", "image", start=both))
    if "classifier.weight" in names:
        outputs.append(
            Output("logits", "image", (Pool(), Dense("classifier", width, names.shape("classifier.weight")[0])))
        )
        rows += linear("classifier", "heads.classifier")
    made = tower(config, registers=2)
    encoder = encoder_rows(prefix, bias=qkv_bias(config))
    return Description((made,), tuple(outputs), (*embedding_rows(prefix), *encoder, *rows), MASK)
