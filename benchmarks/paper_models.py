"""The models of `train_step.py`: recipes in their papers' sizes, and what flags change in them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import launch  # noqa: E402
from unimodal.errors import UsageError  # noqa: E402
from unimodal.experiment import Experiment, build  # noqa: E402
from unimodal.sharding import make_mesh  # noqa: E402


@dataclass(frozen=True)
class Recipe:
    """A recipe and its size; rows of a batch on each chip; fields that differ from it."""

    name: str
    size: str
    rows: int
    fields: Mapping[str, Any] = field(default_factory=dict)


FROZEN = ("tokenizers.image.position_table", "tokenizers.image.projection")
MODELS = {
    "gpt2": Recipe("gpt", "paper", 16),
    "gpt2_xl": Recipe("gpt", "paper_xl", 8),
    "vit_b": Recipe("vit", "paper", 128),
    "vit_l": Recipe("vit", "paper_large", 64),
    "clip_b": Recipe("clip", "paper", 128),
    "wav2vec2": Recipe("wav2vec2", "paper", 8),
    "bert": Recipe("bert", "paper", 32, {"tasks.bert.next_sentence": False}),
    "bert_finetune": Recipe("bert_finetune", "paper", 32),
    "sentence": Recipe("sentence", "paper", 128, {"tasks.sentence.pooling": "mean"}),
    # As transformers trains it: the convolutions frozen, everything else from the first step.
    "ctc": Recipe(
        "ctc",
        "paper",
        8,
        {
            "optimizer.freeze": ("tokenizers.audio.convolutions",),
            "tasks.ctc.mask": 0.0,
            "tasks.ctc.channel_mask": 0.0,
        },
    ),
    "audio_classifier": Recipe("audio_classifier", "paper", 64),
    "mae": Recipe("mae", "paper", 64),
    "imagegpt": Recipe("imagegpt", "paper", 8),
    "simclr": Recipe("simclr", "paper", 64),
    "moco": Recipe("moco", "paper", 64),
    "moco_v2": Recipe(
        "moco",
        "paper",
        64,
        {
            "tasks.moco.queue": 4096,
            "tasks.moco.projector.layers": 2,
            "tasks.moco.projector.norm": "none",
            "tasks.moco.projector.last_norm": False,
            "tasks.moco.final_momentum": None,
        },
    ),
    # Prototypes move from the first step, and a queue gives each of them enough pictures.
    "swav": Recipe("swav", "paper", 32, {"tasks.swav.queue": 3840, "optimizer.freeze": FROZEN}),
}
PAPERS = "gpt2,gpt2_xl,vit_b,vit_l,clip_b,wav2vec2"
# flag → the fields that it sets, in every recipe that has them
FLAGS = {
    "dtype": "*.*.dtype",  # of backbones, and of tokenizers that compute in one of their own
    "remat": "backbones.*.remat",
    "depth": "backbones.*.depth",
    "width": "backbones.*.width",
    "chunk": "tasks.*.chunk",
    "batch": "tasks.*.batch_size",
}
DROPOUT = ("dropout", "stochastic_depth", "feature_dropout", "code_dropout")


def put(config: dict[str, Any], path: str, value: Any) -> bool:
    """Set a dotted field, `*` standing for every name; whether there is such a field."""
    first, _, rest = path.partition(".")
    names = [name for name in config if first in ("*", name)]
    if not rest:
        config.update(dict.fromkeys(names, value))
        return bool(names)
    return any([put(config[name], rest, value) for name in names if isinstance(config[name], dict)])


def plain(name: str, size: str) -> dict[str, Any]:
    """A recipe's config as nested dictionaries."""
    return launch.as_plain(importlib.import_module(f"configs.{name}").get_config(f"size={size}"))


def _plain(model: str) -> dict[str, Any]:
    return plain(MODELS[model].name, MODELS[model].size)


def check(models: Sequence[str], overrides: Sequence[tuple[str, str, Any]]) -> None:
    """Raises UsageError for a field that no model has for which it is given."""
    for whose, path, value in overrides:
        if not any(put(_plain(model), path, value) for model in models if whose in (model, "config")):
            raise UsageError(f"--{whose}.{path}: there is no such field in the recipe")


def make(model: str, options: argparse.Namespace, overrides: Sequence[tuple[str, str, Any]] = ()) -> Experiment:
    """The experiment of a model of `MODELS`; nothing is allocated. `overrides`: (model or "config", field, value).

    Raises UsageError for a value that the recipe cannot take.
    """
    recipe, config = MODELS[model], _plain(model)
    config["init_from"] = None
    config["mesh"] = dict(data=1, fsdp=-1 if options.dp else 1, tensor=1, sequence=1)
    put(config, "tasks.*.batch_size", recipe.rows)
    for group in ("tokenizers", "backbones", "tasks"):
        for name in DROPOUT:
            put(config, f"{group}.*.{name}", 0.0)
    for path, value in recipe.fields.items():
        put(config, path, value)
    for flag, path in FLAGS.items():
        if (value := getattr(options, flag)) is not None:
            put(config, path, value)
    if options.width is not None:
        put(config, "backbones.*.heads", max(1, options.width // 64))  # as all of these have it
    for task in config["tasks"].values():
        shorten(task, options)
    for whose, path, value in overrides:
        if whose in (model, "config"):
            put(config, path, value)
    chips = make_mesh(**config["mesh"]).size
    for task in config["tasks"].values():
        task["batch_size"] *= chips
    return build(config, launch.task_class)


def shorten(task: dict[str, Any], options: argparse.Namespace) -> None:
    """Texts and sounds as long as the flags say, at most; transcripts in proportion."""
    texts, sounds = task.get("texts"), task.get("sounds")
    if options.length is not None and texts is not None:
        texts["length"] = min(texts["length"], options.length)
    if options.seconds is not None and sounds is not None:
        share = min(1.0, options.seconds / sounds["seconds"])
        sounds["seconds"] *= share
        if (transcripts := task.get("transcripts")) is not None:
            transcripts["characters"] = max(1, round(share * transcripts["characters"]))
