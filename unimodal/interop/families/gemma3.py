"""Gemma 3 (Kamath 2025) with pictures: its text model. What reads pictures stays unread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unimodal.interop.describe import Description, Fields, Names
from unimodal.interop.families import gemma3_text
from unimodal.interop.families._derived import renamed

# The names of today, and those of the first files.
PREFIXES = "model.language_model.", "language_model.model."


def describe(config: Fields, names: Names, directory: Path) -> Description:
    words = config.part("text_config")
    there = next((prefix for prefix in PREFIXES if names.prefix(prefix)), "")
    made = renamed(gemma3_text.describe, words, names, directory, there=there, known="model.")
    leftovers = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
    return replace(made, leftovers=(*made.leftovers, *leftovers))
