"""Preparation of a checkpoint's inputs, as fields of our data blocks: normalisation, size, filter, rate, vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.encoders import FILES
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields, Tower
from unimodal.interop.preprocess import load_steps
from unimodal.interop.preprocess_audio import AudioSteps, FilterBank, Waveforms
from unimodal.interop.preprocess_image import ImageSteps


@dataclass(frozen=True)
class Preparation:
    """The preparation of inputs that comes with weights."""

    origin: str  # where they come from, for messages
    # tokenizer of ours → dotted field of what reads it ("images.mean") → value
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the checkpoint does not say, or does and our fields cannot, one line each

    def of(self, reader: Mapping[str, Any]) -> dict[str, Any]:
        """For the fields of a task or an evaluation: those of the tokenizers that it names."""
        found: dict[str, Any] = {}
        for slot, name in reader.items():
            if slot.endswith("tokenizer"):
                found |= self.fields.get(name, {})
        return found


def published(
    directory: Path, config: Mapping[str, Any], places: Mapping[str, Tower], sizes: Mapping[str, Any]
) -> Preparation:
    """Read the preparation of a Hugging Face directory. config: its config.json; places: our tokenizers → the towers that fill them; sizes: the
    config of each of our tokenizers."""
    try:
        steps: Mapping[str, ImageSteps | AudioSteps] = load_steps(directory, Fields(config, str(directory)))
        notes = []
    except UsageError as error:
        steps, notes = {}, [str(error)]
    fields: dict[str, dict[str, Any]] = {}
    for name, tower in places.items():
        made: dict[str, Any] = {}
        if tower.input == "text":
            if any((directory / file).is_file() for file in FILES):
                made = {"texts.encoder": str(directory)}
            else:
                notes.append(f"{directory} has no vocabulary, so texts are encoded as the config says")
        elif tower.input not in steps:
            notes.append(f"{directory} does not say how {tower.input} is prepared, so it is as the config says")
        elif isinstance(step := steps[tower.input], ImageSteps):
            made = _colours(step) if step.colors is not None else _images(step, sizes[name].image_size, notes)
        else:
            made = _sounds(step, notes)
        fields[name] = made
    return Preparation(str(directory), fields, tuple(notes))


def _images(steps: ImageSteps, size: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    """`size`: what our tokenizer takes."""
    # Ours are divided by 255 first: with k = 255·scale, (k·x - mean) / std = (x - mean/k) / (std/k).
    k = 255.0 * (1.0 if steps.scale is None else steps.scale)
    mean, std = (0.0, 1.0) if steps.mean is None or steps.std is None else (steps.mean, steps.std)
    return {
        "images.mean": _numbers(mean, k),
        "images.std": _numbers(std, k),
        "images.resize": _resized(steps, size, notes),
        "images.resample": Image.Resampling(steps.resample).name.lower(),
    }


def _colours(steps: ImageSteps) -> dict[str, Any]:
    """Read the palette of pictures that become ids, from 0 to 255."""
    assert steps.colors is not None
    scale, mean, std = (
        default if x is None else x for x, default in ((steps.scale, 1.0), (steps.mean, 0.0), (steps.std, 1.0))
    )
    levels = np.clip(np.rint((steps.colors * std + mean) / scale), 0, 255)
    return {"pixels.colours": tuple(int(level) for level in levels.reshape(-1))}


def _numbers(values: Any, k: float) -> tuple[float, ...]:
    # Rounded to what float32 holds, so that .5 is .5 and not .4999999999.
    found = tuple(float(f"{value:.7g}") for value in np.atleast_1d(np.asarray(values, np.float64) / k))
    return found[:1] if len(set(found)) == 1 else found


def _resized(steps: ImageSteps, size: tuple[int, int], notes: list[str]) -> tuple[int, ...]:
    """Before the middle is cut out; () where nothing is cut out."""
    if steps.crop is None:
        if not isinstance(steps.size, tuple):
            notes.append("it takes pictures of any proportions, but ours are brought to the tokenizer's size")
        return ()
    to = steps.size if isinstance(steps.size, tuple) else (steps.size,) if steps.size else ()
    if not to:
        notes.append("it cuts the middle out of pictures that it has not resized, but ours are resized")
        return ()
    # At another resolution than the checkpoint's, the same share of the picture.
    factors = [ours / theirs for ours, theirs in zip(size, steps.crop, strict=True)]
    scaled = tuple(
        round(side * factor) for side, factor in zip(to, factors if len(to) == 2 else [min(factors)], strict=True)
    )
    return () if scaled == tuple(size) else scaled


def _sounds(steps: AudioSteps, notes: list[str]) -> dict[str, Any]:
    if isinstance(steps, Waveforms):
        return {"sounds.rate": steps.rate, "sounds.normalize": steps.normalize}
    if isinstance(steps, FilterBank):
        mean, deviation = (0.0, 0.5) if steps.normal is None else steps.normal
        return {"sounds.rate": steps.rate, "sounds.normalize": False, "mean": mean, "deviation": deviation}
    notes.append("its spectrograms are of a kind that no task makes")
    return {"sounds.rate": steps.rate}
