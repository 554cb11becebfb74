"""Gemma 1 (Mesnard 2024): Llama's names; norms that scale by one plus their weight, and embeddings times √D."""

from __future__ import annotations

from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families.llama import biases, decoder


def describe(config: Fields, names: Names, directory: Path) -> Description:
    # The first files say "gelu" where the tanh form was meant; hidden_activation corrects it where it is there.
    config.only("hidden_activation", None, "gelu_pytorch_tanh")
    config.only("hidden_act", "gelu", "gelu_pytorch_tanh")
    config.only("use_bidirectional_attention", None, False)  # the published code sees both ways only without padding
    return decoder(config, names, scaled=True, tied=True, activation="geglu", norm_offset=1.0, **biases(config))
