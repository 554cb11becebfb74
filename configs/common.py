"""Shared parts of recipes: the shape of a config, with its defaults."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from unimodal.backbone import BackboneConfig
from unimodal.configuration import is_brought
from unimodal.continual import ContinualConfig
from unimodal.settings import GeneralConfig, MeshConfig
from unimodal.tokenizers import image, text
from unimodal.training.loop import LoopConfig
from unimodal.training.meters import ProfileConfig
from unimodal.training.optimizer import OptimizerConfig


def every(cls: type[Any], **given: Any) -> ConfigDict:
    """All fields of a dataclass, `given` or at their defaults, so that each can be set from the command line.

    A field that is itself a dataclass is given as a dict of what differs from its default. Fields that come with the
    weights a run starts from stay unset unless they are given.
    """
    hints, fields = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        value = given.pop(field.name, None if is_brought(field) else field.default)
        if dataclasses.is_dataclass(field.default):  # a block: what is given of it, and the rest at its defaults
            there = {
                f.name: getattr(field.default, f.name) for f in dataclasses.fields(field.default) if not is_brought(f)
            }
            value = every(type(field.default), **{**there, **(value if isinstance(value, Mapping) else {})})
        if value is None:  # unset, but of a known type
            hint = hints[field.name]
            kind = hint if is_brought(field) else next(a for a in typing.get_args(hint) if a is not type(None))
            value = placeholder(typing.get_origin(kind) or kind)
        if value is not dataclasses.MISSING:
            fields[field.name] = value
    if given:
        raise ValueError(f"{cls.__name__} has no field {', '.join(given)}")
    return ConfigDict(fields)


def backbone(**given: Any) -> ConfigDict:
    """Every option of a backbone."""
    return every(BackboneConfig, **given)


def size_of(argument: str, *sizes: str) -> str:
    """The size that a recipe's argument asks for: "size=small" or "small" → "small"; the first of `sizes` when empty.

    Raises ValueError, naming the sizes there are.
    """
    size = argument.removeprefix("size=") or sizes[0]
    if size not in sizes:
        raise ValueError(f"{argument!r} is not a size of this recipe: give :size={'|'.join(sizes)}")
    return size


def sized(
    argument: str,
    sizes: Mapping[str, Callable[[ConfigDict], None]],
    *,
    paper: Callable[..., None] | None = None,
    shapes: Iterable[str] = (),
) -> ConfigDict:
    """A config filled in by the one of `sizes` that a recipe's argument asks for (see `size_of`), or by `paper`, which is
    told which of the paper's `shapes` is wanted."""
    config, known = base(), dict(sizes)
    if paper is not None:
        known |= {size: partial(paper, size=size) for size in shapes}
    known[size_of(argument, *known)](config)
    return config


def on_the_book(config: ConfigDict, *, steps: int, evaluate: int, **shape: Any) -> None:
    """Set up what the smallest language models share: bytes of the embedded book, three layers, some minutes on a CPU."""
    config.update(steps=steps, log_every=50, eval_every=evaluate, checkpoint_every=evaluate, eval_limit=8)
    config.optimizer.update(learning_rate=3e-3, warmup=100)
    small: dict[str, Any] = dict(width=192, depth=3, heads=6, rope_theta=10_000.0, scan=False)
    config.backbones.shared = backbone(**{**small, **(shape or dict(activation="gelu_tanh"))})
    config.tokenizers.text = every(text.Config, vocabulary=264)


def on_enwik8(config: ConfigDict) -> str:
    """Set up what the small language models share, 50,000 steps on enwik8, and return that source."""
    config.update(steps=50_000, log_every=100, eval_every=5_000, checkpoint_every=5_000, eval_limit=50)
    return "array_record:data/enwik8"


def sees_imagenet(config: ConfigDict, shape: Mapping[str, int], **optimizer: Any) -> None:
    """A ViT of a paper's shape that learns without labels from pictures of 224 pixels, in batches of 4096.

    Patches have 16 pixels, positions are sines and cosines that stay as they are. The rate is 1.5e-4 for each 256
    examples, after 12,500 steps of warm-up.
    """
    still = ("tokenizers.image.position_table", *optimizer.pop("freeze"))
    config.optimizer.update(learning_rate=2.4e-3, warmup=12_500, final=0.0, b1=0.9, clip=0.0, freeze=still, **optimizer)
    config.backbones.shared = backbone(**shape, dtype="bfloat16", remat="light")
    config.tokenizers.image = every(image.Config, image_size=(224, 224), patch=16, sincos=True)


def base() -> ConfigDict:
    """A config without tokenizers, backbones and tasks. Every key is a field of a dataclass in `launch.py`'s reach."""
    general = every(GeneralConfig)
    del general["fake_data"]  # a flag of its own
    groups = dict(
        mesh=every(MeshConfig),
        profile=every(ProfileConfig),
        optimizer=every(OptimizerConfig),
        continual=every(ContinualConfig),
        **{name: {} for name in ("tokenizers", "backbones", "tasks", "evaluations")},
    )
    return ConfigDict({**general, **every(LoopConfig, steps=1000), **groups}, convert_dict=True)
