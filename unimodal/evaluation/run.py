"""Evaluations on a mesh: batches are predicted on the devices, and their rows gathered as they come."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unimodal import data
from unimodal.data.blocks import Inputs
from unimodal.data.dataset import Dataset, Examples
from unimodal.evaluation.evaluation import Made, Predict, Rows
from unimodal.model import Model
from unimodal.sharding import from_local_rows, local_rows

MOST_KEPT = 1 << 28  # bytes that `once` keeps: features of CIFAR-10, but not of ImageNet


class MeshReader:
    """The `Reader` of a mesh, for one run. A function is compiled once and a split opened once, however often the model
    changes."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._compiled: dict[Predict, Any] = {}
        self._opened: dict[tuple[Callable[[Model], Inputs], str], Dataset] = {}
        self._weights: list[Callable[[], Any]] = []  # weak references to those that `_made` was made of
        self._made: list[tuple[Any, Made]] = []

    def examples(self, inputs: Callable[[Model], Inputs], model: Model, split: str) -> Dataset:
        """See `Reader.examples`."""
        # Key by the function, as below. A model's weights do not change its inputs.
        if (inputs, split) not in self._opened:
            self._opened[inputs, split] = inputs(model).dataset(split)
        return self._opened[inputs, split]

    def rows(
        self, predict: Predict, model: Model, examples: Examples, batch_size: int, limit: int | None = None
    ) -> Iterator[Rows]:
        """See `Reader.rows`."""
        # Key by the function: a bound method of the same task is equal each time, so it compiles once.
        compiled = self._compiled.setdefault(predict, jax.jit(predict))
        count = None if limit is None else limit * batch_size
        mine = local_rows(self.mesh, batch_size)
        for batch in data.eval_batches(examples, batch_size=batch_size, limit=count, rows=mine):
            with jax.set_mesh(self.mesh):
                arrays = from_local_rows(batch, self.mesh)
                kept = {name: arrays.pop(name) for name in ("example_weight", "index")}
                found = {name: _gather(value) for name, value in {**compiled(model, arrays), **kept}.items()}
            # Drop what only fills up the last batch, after the devices are done: shapes on them stay equal.
            real = found.pop("example_weight") > 0
            yield {name: value[real] for name, value in found.items()}

    def once(self, asked: Any, model: Model, make: Callable[[], Made]) -> Made:
        """See `Reader.once`."""
        # Compare the arrays and not the model, which may have been changed in place.
        weights = jax.tree.leaves(model)
        if len(weights) != len(self._weights) or any(a() is not b for a, b in zip(self._weights, weights, strict=True)):
            self._weights, self._made = [weakref.ref(array) for array in weights], []
        for known, found in self._made:
            if known == asked:
                return found
        found = make()
        for array in found:
            array.flags.writeable = False  # whoever asks next gets the same
        if sum(array.nbytes for _, arrays in [*self._made, (asked, found)] for array in arrays) <= MOST_KEPT:
            self._made.append((asked, found))
        return found


def _gather(value: jax.Array) -> np.ndarray:
    # Gather on every host: samples and scores are made by each of them alike.
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    return np.asarray(value)
