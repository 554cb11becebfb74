"""Several datasets as one, in fixed shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from unimodal.data.dataset import Dataset
from unimodal.data.stacking import GlobalBatches
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Datasets and their weights; goes wherever batches are made (`train_batches`, `eval_batches`).

    Training interleaves the endless streams of all parts in a fixed pattern with these shares (`grain.MapDataset.mix`:
    after n examples part i has given n * w_i / sum(w), to within one per part; weights count in steps of 1 % of the
    smallest). Every part shuffles and repeats by itself, so a small part repeats often without cutting a large one
    short. Evaluation goes through all parts one after the other, each once.
    """

    datasets: tuple[Dataset, ...]  # in order
    weights: tuple[float, ...]  # one for each

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def stream(self, seed: int, batch: int = 1) -> grain.MapDataset:
        """The endless mixed stream. Part i draws from its own seed, a hash of (seed, i)."""
        words = np.random.SeedSequence(seed).generate_state(len(self.datasets))
        parts = [dataset.stream(int(word), batch) for dataset, word in zip(self.datasets, words, strict=True)]
        return grain.MapDataset.mix(parts, self.weights)

    def batches(self, seed: int, batch_size: int, rows: Sequence[int]) -> grain.MapDataset:
        """`rows` of each batch of the mixed stream, stacked."""
        return GlobalBatches(self.stream(seed, batch_size), batch_size, rows)

    def ordered(self) -> grain.MapDataset:
        """Every example of every part once."""
        return grain.MapDataset.concatenate([dataset.ordered() for dataset in self.datasets])


def mix(datasets: Sequence[Dataset], weights: Sequence[float]) -> Mixture:
    """Mixes datasets whose examples have the same arrays.

    The first example of each is made here and compared: UsageError names the first that differs in keys, shapes
    or dtypes. Also UsageError for no datasets, a different number of weights, or a weight that is not above 0.
    """
    if not datasets:
        raise UsageError("nothing to mix: give at least one dataset")
    if len(datasets) != len(weights):
        raise UsageError(f"{len(datasets)} datasets need {len(datasets)} weights, found {len(weights)}")
    for weight in weights:
        if not (weight > 0 and np.isfinite(weight)):
            raise UsageError(f"mixing weights must be above 0, found {weight}; leave a dataset out to give it none")
    expected = _signature(datasets[0])
    for index, dataset in enumerate(datasets):
        found = _signature(dataset)
        if found != expected:
            raise UsageError(f"dataset {index} of the mixture gives {found}, but dataset 0 gives {expected}")
    return Mixture(tuple(datasets), tuple(float(weight) for weight in weights))


def _signature(dataset: Dataset) -> dict[str, str]:
    example = dataset[0]
    return {key: f"{np.shape(example[key])} {np.asarray(example[key]).dtype}" for key in sorted(example)}
