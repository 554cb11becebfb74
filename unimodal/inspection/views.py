"""The arrays of an example as something to look at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data import log_mel
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError
from unimodal.report.views.media import data_uri, encode_wav, png_uri

_MOST_SIDE = 224
_MOST_SOUND = 10.0  # seconds that can be played
_RATE = 16_000


@dataclasses.dataclass(frozen=True)
class View:
    """One array of an example, ready to be drawn."""

    name: str  # of the array
    kind: str  # picture, sound, text, strip or value
    text: str = ""  # words to show
    pictures: tuple[str, ...] = ()  # data URIs
    sound: str = ""  # data URI


def views_of(task: Any, spec: Mapping[str, ArraySpec], example: Mapping[str, Any]) -> tuple[View, ...]:
    """Every array of an example, as its shape and the task's blocks say what it is; not the bytes that ids stand for, nor
    where the parts of a row lie."""
    silent = {"bytes", "position", "start", *(("place", "register", "segment") if "patches" in example else ())}
    return tuple(
        _view(task, name, spec.get(name), np.asarray(example[name]), example)
        for name in example
        if name[0] != "_" and name not in silent
    )


def _view(task: Any, name: str, spec: ArraySpec | None, array: np.ndarray, example: Mapping[str, Any]) -> View:
    if name == "patches":
        return View(name, "picture", pictures=tuple(_picture(spec, one) for one in _pictures_of(array, example)))
    if name == "segment" and array.ndim == 1:
        sizes = np.bincount(array)
        listed = ", ".join(f"{number}: {size}" for number, size in enumerate(sizes) if number and size)
        return View(name, "text", text=f"{listed}; padding: {sizes[0]}")
    if name == "text" and array.ndim == 2:
        return View(name, "text", text="\n".join(_decoded(task, name, row) or "" for row in array if row.any()))
    if name == "label" and array.ndim == 1:
        return View(name, "text", text=", ".join(_value(task, name, number) for number in array if number >= 0))
    if array.dtype.kind == "f" and array.ndim == 4 and array.shape[-1] in (1, 3):  # several views of one picture
        return View(name, "picture", pictures=tuple(_picture(spec, one) for one in array[:8]))
    if array.dtype.kind == "f" and array.ndim in (2, 3) and (array.ndim == 2 or array.shape[-1] in (1, 3)):
        return View(name, "picture", pictures=(_picture(spec, array),))
    if array.dtype.kind == "f" and array.ndim == 1 and len(array) >= 400:
        return _sound(task, name, array, example)
    if array.dtype.kind == "i" and array.ndim == 1:
        text = _decoded(task, name, array)
        return View(name, "text" if text is not None else "strip", text=_numbers(array) if text is None else text)
    if array.ndim == 1:
        return View(name, "picture", pictures=(_strip(array),), text=f"{int((array != 0).sum())} of {len(array)}")
    if array.ndim == 0:
        return View(name, "value", text=_value(task, name, array))
    return View(name, "value", text=f"{array.dtype}{list(array.shape)}")


def _pictures_of(patches: np.ndarray, example: Mapping[str, Any]) -> list[np.ndarray]:
    """The pictures [H,W,C] of a row of patches."""
    found = []
    for number in range(1, int(example["segment"].max()) + 1):
        own = (example["segment"] == number) & (example["register"] == 0)
        rows, columns = example["place"][own][0, 2:]
        channels = 3 if math.isqrt(patches.shape[1] // 3) ** 2 * 3 == patches.shape[1] else 1
        side = math.isqrt(patches.shape[1] // channels)
        cut = patches[own].reshape(rows, columns, side, side, channels).transpose(0, 2, 1, 3, 4)
        found.append(cut.reshape(rows * side, columns * side, channels))
    return found


def _picture(spec: ArraySpec | None, array: np.ndarray) -> str:
    low, high = (float(array.min()), float(array.max())) if spec is None else (spec.low, spec.high)
    if spec is None or not low <= array.min() <= array.max() <= high * 1.001 + 1e-3:
        low, high = float(array.min()), float(array.max())
    array = array[..., None] if array.ndim == 2 else array
    pixels = np.clip((array - low) / max(high - low, 1e-9) * 255, 0, 255).round().astype(np.uint8)
    fold = max(1, -(-max(pixels.shape[:2]) // _MOST_SIDE))
    pixels = pixels[::fold, ::fold]
    return png_uri(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _sound(task: Any, name: str, array: np.ndarray, example: Mapping[str, Any]) -> View:
    sounds = getattr(task, "sounds", None)
    rate = int(getattr(sounds, "rate", _RATE))
    real = array[: int(example["length"])] if np.ndim(example.get("length", [])) == 0 else array
    if len(real) < 400:
        return View(name, "sound", text=f"{len(real)} samples")
    heat = log_mel(real.astype(np.float32), rate).T[::-1]
    low, high = np.percentile(heat, [2, 99.5])
    gray = np.clip((heat - low) / max(float(high - low), 1e-9) * 255, 0, 255).astype(np.uint8)
    gray = gray[:, :: max(1, -(-gray.shape[1] // 600))]
    picture = png_uri(np.broadcast_to(gray[:, :, None], (*gray.shape, 3)))
    loud = real / max(1e-6, float(np.abs(real).max()))
    playable = data_uri("audio/wav", encode_wav(loud[: int(_MOST_SOUND * rate)], rate))
    return View(name, "sound", f"{len(real) / rate:.2f} s at {rate:,} Hz", (picture,), playable)


def _decoded(task: Any, name: str, ids: np.ndarray) -> str | None:
    """Ids as their text: characters of a transcript, or what the task's encoder makes of them; None where nothing does."""
    try:
        if name == "text" and hasattr(task, "letters"):
            return str(task.letters.decode(ids))
        if name in ("ids", "inputs", "targets", "first", "second") and hasattr(task, "texts"):
            return _with_masks(task.texts.opened, ids)
    except (UsageError, ValueError, IndexError):
        return None
    return None


def _with_masks(encoder: Any, ids: np.ndarray) -> str:
    """The text of a row, with a block in the place of each hidden id."""
    mask, out, held = getattr(encoder, "MASK", -1), [], []
    for value in ids[ids != encoder.PAD]:
        if value == mask:
            out += [encoder.decode(np.array(held, np.int32)) if held else "", "▒"]
            held = []
        else:
            held.append(int(value))
    return "".join([*out, encoder.decode(np.array(held, np.int32)) if held else ""])


def _strip(array: np.ndarray) -> str:
    """A row of cells, dark where something is."""
    shade = np.where(array != 0, 60, 225).astype(np.uint8)
    return png_uri(np.broadcast_to(shade[None, :, None], (max(4, len(array) // 24), len(array), 3)))


def _numbers(array: np.ndarray) -> str:
    if len(array) and (array == array[0]).all():
        return f"{array[0]} everywhere"
    return " ".join(map(str, array[:24])) + (" …" if len(array) > 24 else "")


def _value(task: Any, name: str, array: np.ndarray) -> str:
    labels = getattr(task, "labels", None)
    if name == "label" and labels is not None:
        segments = getattr(getattr(task, "sounds", None), "segments", "")
        names = labels.names(task.source, segments)
        return f"{int(array)}: {names[int(array)]}" if 0 <= int(array) < len(names) else str(array)
    return f"{array.item():g}" if array.dtype.kind in "fiu" else str(array.item())
