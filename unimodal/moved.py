"""Fields of configs that have moved, so that a run's config.json from before still says what it said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimodal.data.sources import EMOJI_GROUPS

# Before blocks of data were nested in tasks, their fields stood beside the task's own: kind → old name → place now.
MOVED: dict[str, dict[str, str]] = {
    "gpt": {"fields": "texts.column", "encoder": "texts.encoder", "length": "texts.length"},
    "bert": {"fields": "texts.column", "encoder": "texts.encoder", "length": "texts.length"},
    "text_classifier": {
        "fields": "texts.column",
        "encoder": "texts.encoder",
        "length": "texts.length",
        "classes": "labels.classes",
        "label": "labels.column",
    },
    "sentence": {"first": "texts.column", "encoder": "texts.encoder", "length": "texts.length"},
    "vit": {
        "classes": "labels.classes",
        "crop": "images.crop",
        "flip": "images.flip",
        "shift": "images.shift",
        "jitter": "images.jitter",
    },
    "clip": {
        "length": "texts.length",
        "crop": "images.crop",
        "shift": "images.shift",
        "jitter": "images.jitter",
    },
    "wav2vec2": {"seconds": "sounds.seconds", "rate": "sounds.rate"},
    "ctc": {
        "seconds": "sounds.seconds",
        "rate": "sounds.rate",
        "segments": "sounds.segments",
        "transcript": "transcripts.column",
        "characters": "transcripts.characters",
        "alphabet": "transcripts.alphabet",
        "drop": "transcripts.drop",
        "keep": "transcripts.keep",
    },
    "audio_classifier": {
        "segments": "sounds.segments",
        "rate": "sounds.rate",
        "label": "labels.column",
        "classes": "labels.classes",
    },
}


# Defaults of then, which the data says by itself now.
OBVIOUS: dict[str, tuple[Any, ...]] = {
    "texts.column": ("text",),
    "transcripts.column": ("text",),
    "labels.column": ("label", "group"),
    "labels.classes": (EMOJI_GROUPS,),
}


def renewed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with fields that have moved in their places of now. What is in place already stays as it is."""
    tasks = config.get("tasks", {})
    if not isinstance(tasks, Mapping):
        return dict(config)
    return {**config, "tasks": {name: _renewed_task(name, fields) for name, fields in tasks.items()}}


def _renewed_task(name: str, fields: Any) -> Any:
    if not isinstance(fields, Mapping):
        return fields
    moved, made = MOVED.get(fields.get("kind", name), {}), {}
    for field, value in fields.items():
        if field in moved:
            block, inner = moved[field].split(".")
            given = tuple(value) if isinstance(value, list | tuple) else value
            # Several columns were a list once.
            given = "+".join(given) if inner == "column" and isinstance(given, tuple) else given
            if given not in OBVIOUS.get(moved[field], ()):
                made[block] = {**made.get(block, {}), inner: given}
        elif field == "second" and isinstance(value, list | tuple):
            made[field] = "+".join(value)
        elif isinstance(value, Mapping):
            made[field] = {**made.get(field, {}), **value}
        else:
            made[field] = value
    if moved is MOVED["clip"] and "length" in fields:  # captions were mixed with keywords then, always
        made["texts"] = {"phrases": "keywords", **made.get("texts", {})}
    return made
