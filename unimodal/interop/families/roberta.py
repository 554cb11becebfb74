"""RoBERTa (Liu 2019): BERT's encoder; positions are counted from after the padding id."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families._heads import Head, answers, classifier, joined
from unimodal.interop.families.bert import (
    embedding_rows,
    layer_rows,
    leftovers,
    masked_lm,
    pooler,
    sentence_pooling,
    start,
    tower,
)
from unimodal.interop.stages import Dense, Pool
from unimodal.interop.table import linear, norm


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width, pad = names.prefix("roberta."), config.need("hidden_size"), config.get("pad_token_id", 1)
    sentence = sentence_pooling(directory)
    found = [pooler(config, names, prefix, sentence), answers(names, width)]
    if "lm_head.dense.weight" in names:
        there, ours = "lm_head", "heads.masked_lm"
        rows = (
            *linear(f"{there}.dense", f"{ours}.transform"),
            *norm(f"{there}.layer_norm", f"{ours}.norm"),
        )
        found += [masked_lm(config, names, there, "gelu"), ((), rows)]
    if "classifier.out_proj.weight" in names:
        found.append(_classifier(names, width))
    else:
        found.append(classifier(names, "text", width, "classifier", start=start(config, names, prefix, sentence)))
    outputs, rows = joined(*found)
    layers = layer_rows(f"{prefix}encoder.layer.{{layer}}", names)
    made = tower(config, first_position=pad + 1, pad_id=pad)
    return Description((made,), outputs, (*embedding_rows(prefix, names), *layers, *rows), leftovers(sentence))


def _classifier(names: Names, width: int) -> Head:
    """A classifier of texts: a tanh layer of its own on the first token, in place of the pooler."""
    before = (Pool(), Dense("classifier_hidden", width, width, "tanh"))
    found = classifier(names, "text", width, "classifier.out_proj", before=before)
    return joined(found, ((), linear("classifier.dense", "heads.classifier_hidden")))
