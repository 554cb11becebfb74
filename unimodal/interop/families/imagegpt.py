"""ImageGPT (Chen 2020): GPT-2 over colour clusters, with a norm that takes no mean away."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names, Output
from unimodal.interop.families.gpt2 import MASKS, language_model, rows, tower
from unimodal.interop.stages import Dense, Pool
from unimodal.interop.table import linear


def describe(config: Fields, names: Names, directory: Path) -> Description:
    prefix, width, outputs, head = names.prefix("transformer."), config.need("n_embd"), (), ()
    activation = config.activation("activation_function", "quick_gelu")
    if config.head("ForCausalImageModeling") or "lm_head.weight" in names:
        # A matrix of its own does not predict the token that begins every picture.
        clusters = names.shape("lm_head.weight")[0] if "lm_head.weight" in names else config.need("vocab_size")
        outputs, head = language_model(config, width, clusters, "image", tied=False)
    if "score.weight" in names:
        classes = names.shape("score.weight")[0]
        outputs = (Output("logits", "image", (Pool(stop=None), Dense("classifier", width, classes, bias=False))),)
        head = linear("score", "heads.classifier", bias=False)
    made = tower(config, "image", norm="rms", activation=activation)
    return Description((made,), outputs, (*rows(prefix, "image", bias=False), *head), MASKS)
