"""The parts of a model that one task uses, handed to an architecture, and what the architecture makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unimodal.backbone import BackboneConfig
from unimodal.interop.describe import ACTIVATION_NAMES


@dataclass(frozen=True)
class Part:
    """A tokenizer and the backbone behind it, by their names in the model, with their configs."""

    tokenizer: str  # its name in the model
    kind: str  # of tokenizer: text, image, audio, spectrogram
    config: Any  # the tokenizer's Config
    backbone: str  # its name in the model
    layers: BackboneConfig  # the backbone's config
    causal: bool = False  # tokens see only what came before


@dataclass(frozen=True)
class Handed:
    """A task's part of a model."""

    task: str  # its name: the heads are `model.heads[task]`
    inputs: Mapping[str, Part]  # "text", "image" or "audio" → what reads it
    heads: Mapping[str, Any]  # the task's, by name
    labels: tuple[str, ...] = ()  # names of classes, where it tells some apart
    end: int | None = None  # the id that ends every text, where there is one
    pad: int | None = None  # the id that fills up texts, where the vocabulary has one
    # a second backbone that the task uses behind its heads, by its name in the model, with its config
    decoder: tuple[str, BackboneConfig] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)  # the task's own, for what an architecture calls otherwise


@dataclass(frozen=True)
class Offer:
    """An architecture's config.json for a model."""

    family: str  # which of `interop.families` reads it
    config: dict[str, Any]  # the whole config.json
    # names of tensors that tell which heads there are, with their shapes as far as the family looks at them
    markers: Mapping[str, tuple[int, ...]]
    wants: str  # the heads that it has, in words
    # A head of the architecture → ours, by name, where they are of one make but called otherwise.
    renamed: Mapping[str, str] = field(default_factory=dict)


def activation(name: str, *, tanh: str = "gelu_pytorch_tanh") -> str:
    """The published name of an activation of ours. tanh: what the architecture calls GELU by tanh."""
    if name == "gelu_tanh":
        return tanh
    return next((theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == name), name)


def labelled(labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields that name classes."""
    if not labels:
        return {}
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def side(size: tuple[int, int]) -> int | list[int]:
    """A picture's size: one number where it is square."""
    return size[0] if size[0] == size[1] else list(size)
