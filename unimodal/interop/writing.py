"""Published language models write: prompts as their tokenizers pad them, bucketed so that few lengths are compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unimodal.errors import UsageError
from unimodal.generate import Sampling, check_ids, generate
from unimodal.interop.describe import Tower
from unimodal.interop.stages import Vocabulary

_generate = jax.jit(generate, static_argnames=("steps", "sampling", "stop", "fill"))


def write(
    model: Any,
    ids: Any,
    mask: Any,
    key: jax.Array | None,
    *,
    steps: int,
    sampling: Sampling,
    stop: tuple[int, ...] | None,
    fill: int,
) -> np.ndarray:
    """See `Pretrained.generate`."""
    tower, head = writer(model)
    # Refuse a hidden default: two calls would draw the same "random" text.
    if sampling.temperature and key is None:
        raise UsageError(f"sampling at temperature {sampling.temperature} needs a key, such as jax.random.key(0)")
    prompt, lengths = _bucketed(tower, ids, mask, steps)
    check_ids(prompt, np.arange(prompt.shape[1])[None] < lengths[:, None], tower.tokenizer.vocabulary)
    return np.asarray(
        _generate(
            model.backbones[tower.name],
            model.tokenizers[tower.name],
            model.heads[head],
            prompt,
            lengths,
            jax.random.key(0) if key is None else key,
            steps=steps,
            sampling=sampling,
            stop=end_ids(model.origin) if stop is None else tuple(stop),
            fill=fill,
        )
    )


def writer(model: Any) -> tuple[Tower, str]:
    """The tower and the name of the head that predict the next id."""
    towers = {tower.name: tower for tower in model.description.towers}
    for output in model.description.outputs:
        tower, stages = towers[output.tower], output.stages
        if tower.kind == "text" and tower.causal and len(stages) == 1 and isinstance(stages[0], Vocabulary):
            return tower, stages[0].name
    raise UsageError("this checkpoint has no head that predicts the next id, so it cannot generate")


def _bucketed(tower: Tower, ids: Any, mask: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded at the end to a power of two, as far as the position table reaches, and their lengths."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UsageError(f"{tower.input} should be ids [B,T] of whole numbers, but is {ids.dtype}{list(ids.shape)}")
    real = np.ones(ids.shape, bool) if mask is None else np.asarray(mask) != 0
    if real.shape != ids.shape:
        raise UsageError(f"the mask should have the shape of the ids, {list(ids.shape)}, but has {list(real.shape)}")
    lengths = real.sum(axis=1).astype(np.int32)
    if not len(lengths) or not lengths.all():
        row = int(lengths.argmin()) if len(lengths) else 0
        raise UsageError(
            f"row {row} of {tower.input} is empty: give at least one id, such as the one that begins a text"
        )
    longest, limit = int(lengths.max()), tower.tokenizer.max_length
    # Round up to a power of two, so that prompts of all lengths compile a few programs.
    width = max(16, 1 << (longest - 1).bit_length())
    if limit is not None:
        if longest + steps - 1 > limit:
            raise UsageError(f"{longest} ids and {steps} steps do not fit the position table, max_length={limit}")
        width = min(width, limit - max(steps, 1) + 1)
    prompt = np.zeros((len(ids), width), np.int32)
    prompt[np.arange(width)[None] < lengths[:, None]] = ids[real]
    return prompt, lengths


def end_ids(origin: Any) -> tuple[int, ...]:
    """The ids that end a text, as the checkpoint's directory says."""
    file, found = Path(origin.directory) / "generation_config.json", None
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    # Ask config.json second: generation_config.json is newer, and may name several ends.
    if found is None:
        found = json.loads(origin.config).get("eos_token_id")
    return tuple(i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int))
