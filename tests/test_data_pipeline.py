"""Order, resuming, sharding over processes, padding of the last batch, made-up batches, mixtures."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gc
import itertools
import json
from typing import Any

import grain
import numpy as np
import pytest

from unimodal.data import (
    ArraySpec,
    BatchIterator,
    Budget,
    Dataset,
    TaskBatches,
    cached,
    check_example,
    eval_batches,
    fake_batches,
    mix,
    packed_rows,
    train_batches,
)
from unimodal.data.order import endless, order_seed
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Records 0 … count - 1, each with its own value."""

    count: int
    offset: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {"id": str(index), "value": index + self.offset}


def noisy(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"value": np.int32(record["value"]), "noise": rng.random(2, dtype=np.float32)}


NUMBERS = Dataset(Numbers(10), noisy)


def take(iterator: BatchIterator, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iterator, count))


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], strict=True)


def test_every_epoch_has_all_examples_in_an_order_of_its_own() -> None:
    batches = take(train_batches(NUMBERS, batch_size=4, seed=0), 10)
    values = np.concatenate([batch["value"] for batch in batches]).reshape(4, 10)
    assert (np.sort(values, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in values}) == 4
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len(np.unique(noise[:, 0])) == 40  # nobody draws the same numbers twice


def test_order_follows_the_seed_and_nothing_else() -> None:
    runs = [
        take(train_batches(NUMBERS, batch_size=4, seed=5, prefetch=prefetch, threads=threads), 12)
        for prefetch, threads in ((True, 2), (True, 7), (False, 1))
    ]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    # Neighbouring seeds must not be the same epochs moved by one, neither in order nor in what is drawn.
    epochs = {
        seed: np.concatenate([batch["value"] for batch in take(train_batches(NUMBERS, batch_size=10, seed=seed), 4)])
        for seed in range(8)
    }
    assert len({tuple(epoch) for values in epochs.values() for epoch in values.reshape(4, 10)}) == 32
    draws = [next(train_batches(NUMBERS, batch_size=10, seed=seed))["noise"].tobytes() for seed in range(8)]
    assert len(set(draws)) == 8


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 70_000])
def test_the_order_is_that_of_grains_shuffle(count: int) -> None:
    """Checkpoints of runs that were shuffled by grain itself go on in its order."""
    ours, theirs = endless(range(count), 2**32 - 2), grain.MapDataset.source(range(count)).shuffle(2**32 - 2).repeat()
    places = [0, 1, count - 1, count, 3 * count + 1, *np.random.default_rng(0).integers(0, 10 * count, 50).tolist()]
    assert [ours[place] for place in places] == [theirs[place] for place in places]
    assert ours[5:8][1] == theirs[6]


def test_examples_that_are_made_are_cut_as_they_would_be_stacked() -> None:
    texts: Any = [{"id": str(i), "text": "x" * (1 + i % 7)} for i in range(40)]
    rows = packed_rows(texts, lambda text: np.full(len(text), 9, np.int32), 8)
    stacked = rows.map(lambda example, rng: example)
    for options in (dict(rows=[1, 2]), dict(prefetch=False)):
        made = [take(train_batches(d, batch_size=4, seed=1, **options), 30) for d in (rows, stacked)]  # type: ignore[arg-type]
        assert_same(*([{**batch, "id": batch["id"].astype("U9")} for batch in batches] for batches in made))
    assert rows.source[3]["id"] == "row3" and "id" not in rows[3]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_one_global_batch(processes: int) -> None:
    whole = take(train_batches(NUMBERS, batch_size=8, seed=3), 6)
    parts = [
        take(train_batches(NUMBERS, batch_size=8, seed=3, rows=range(index, index + 8 // processes)), 6)
        for index in range(0, 8, 8 // processes)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)
    assert parts[0][0]["value"].shape == (8 // processes,)


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 11])  # batches of 4 out of 10: within and across epochs
@pytest.mark.parametrize("prefetch", [True, False])
def test_resuming_goes_on_bit_for_bit(stop: int, prefetch: bool) -> None:
    expected = take(train_batches(NUMBERS, batch_size=4, seed=1), 16)
    first = train_batches(NUMBERS, batch_size=4, seed=1, prefetch=prefetch)
    assert_same(take(first, stop), expected[:stop])
    state = json.loads(json.dumps(first.get_state()))
    second = train_batches(NUMBERS, batch_size=4, seed=1, prefetch=prefetch)
    take(second, 3)  # a used iterator can be set as well as a fresh one
    second.set_state(state)
    assert second.get_state() == state
    assert_same(take(second, 16 - stop), expected[stop:])


def test_tasks_on_one_source_see_it_in_orders_of_their_own() -> None:
    make = lambda seed: train_batches(Dataset(Numbers(50), noisy), batch_size=4, seed=seed, prefetch=False)  # noqa: E731
    first, second, again = (take(TaskBatches(make, 3, name), 6) for name in ("a", "b", "a"))
    assert_same(first, again)
    assert all((x["value"] != y["value"]).any() for x, y in zip(first, second, strict=True))
    assert_same(first, take(make(order_seed(3, "a")), 6))
    assert len({order_seed(seed, name) for seed in range(20) for name in ("a", "b", "gpt")}) == 60


def test_a_state_from_before_goes_on_in_the_order_of_the_seed_alone() -> None:
    make = lambda seed: train_batches(Dataset(Numbers(50), noisy), batch_size=4, seed=seed, prefetch=False)  # noqa: E731
    whole, old = take(make(3), 8), make(3)
    take(old, 3)
    resumed = TaskBatches(make, 3, "a")
    resumed.set_state(old.get_state())
    assert_same(take(resumed, 2), whole[3:5])
    later = TaskBatches(make, 3, "a")
    later.set_state(json.loads(json.dumps(resumed.get_state())))  # and so does what is saved from then on
    assert_same(take(later, 3), whole[5:8])

    new = TaskBatches(make, 3, "a")
    whole = take(TaskBatches(make, 3, "a"), 5)
    take(new, 2)
    fresh = TaskBatches(make, 3, "a")
    fresh.set_state(json.loads(json.dumps(new.get_state())))
    assert_same(take(fresh, 3), whole[2:])


def test_evaluation_sees_everything_once_in_order_with_weights() -> None:
    batches = eval_batches(NUMBERS, batch_size=4)
    assert len(batches) == 3
    seen = list(batches)
    assert [batch["value"].tolist() for batch in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [batch["example_weight"].tolist() for batch in seen] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert seen[0]["example_weight"].dtype == np.float32
    assert_same(list(batches), seen)
    assert_same([batches[i] for i in range(3)], seen)
    wider = np.concatenate([batch["noise"] for batch in eval_batches(NUMBERS, batch_size=5)])
    np.testing.assert_array_equal(wider, np.concatenate([batch["noise"] for batch in seen])[:10])
    np.testing.assert_array_equal(NUMBERS[3]["noise"], seen[0]["noise"][3])
    assert len(list(eval_batches(NUMBERS, batch_size=4, limit=5))) == 2
    assert sum(b["example_weight"].sum() for b in eval_batches(NUMBERS, batch_size=4, limit=5)) == 5


def test_evaluation_over_processes() -> None:
    whole = list(eval_batches(NUMBERS, batch_size=4))
    parts = [list(eval_batches(NUMBERS, batch_size=4, rows=rows)) for rows in ([0, 1], [2, 3])]
    assert_same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)], whole)


def test_map_draws_on_the_same_generator() -> None:
    mapped = NUMBERS.map(lambda example, rng: {"pair": np.array([example["noise"][0], rng.random()])})
    pair = next(train_batches(mapped, batch_size=4, seed=0))["pair"]
    assert (pair[:, 0].astype(np.float32) == next(train_batches(NUMBERS, batch_size=4, seed=0))["noise"][:, 0]).all()
    assert (pair[:, 0] != pair[:, 1]).all()


def test_cached_decodes_once_and_guards_its_arrays() -> None:
    calls: list[int] = []

    def decode(record: dict[str, Any]) -> dict[str, Any]:
        calls.append(record["value"])
        return {**record, "array": np.zeros(3), "parts": (np.zeros(3), {"inner": [np.zeros(3)]})}

    source = cached(Numbers(4), decode)
    assert len(source) == 4
    for _ in range(3):
        for index in range(4):
            source[index].pop("value")
    assert calls == [0, 1, 2, 3] and "value" in source[0]
    outer, (first, deep) = source[0]["array"], source[0]["parts"]
    for array in (outer, first, deep["inner"][0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def big(record: dict[str, Any]) -> dict[str, Any]:
    return {"id": record["id"], "array": np.full(1000, record["value"])}  # 8,000 bytes and a little


def test_what_has_no_room_is_decoded_again_and_comes_out_the_same(caplog: pytest.LogCaptureFixture) -> None:
    budget, calls = Budget(30_000), []

    def decode(record: dict[str, Any]) -> dict[str, Any]:
        calls.append(record["value"])
        return big(record)

    source = cached(Numbers(6), decode, budget=budget)
    with caplog.at_level("WARNING"):
        for _ in range(3):
            for index in (5, 4, 3, 2, 1, 0):
                assert (source[index]["array"] == index).all() and not source[index]["array"].flags.writeable
    assert [calls.count(index) for index in (5, 4, 3)] == [1, 1, 1]  # the first three fill the budget
    assert [calls.count(index) for index in (2, 1, 0)] == [6, 6, 6]
    assert 24_000 < budget.used <= 30_000
    assert [record.message for record in caplog.records] == [
        "decoded records beyond 2.8e-05 GiB are decoded anew each time (said once)"
    ]


def test_sources_share_a_budget_and_give_it_back() -> None:
    budget = Budget(30_000)
    one, other = (cached(Numbers(3), big, budget=budget) for _ in range(2))
    for index in range(3):
        one[index], other[index]
    assert budget.used <= 30_000
    del one
    gc.collect()
    assert 0 <= budget.used < 10_000
    for index in range(3):
        other[index]
    assert budget.used > 24_000
    del other
    gc.collect()
    assert budget.used == 0


def test_a_view_counts_as_what_it_keeps_alive() -> None:
    budget = Budget(30_000)
    source = cached(Numbers(5), lambda r: {"id": r["id"], "array": big(r)["array"][:10], "text": "x"}, budget=budget)
    for index in range(5):
        source[index]
    assert 24_000 < budget.used <= 30_000


def test_many_threads_keep_within_the_budget() -> None:
    budget = Budget(50_000)
    source = cached(Numbers(20), big, budget=budget)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: source[index % 20]["array"][0], range(400)))
    assert found == [index % 20 for index in range(400)]
    assert 40_000 < budget.used <= 50_000
    examples = Dataset(source, lambda record, rng: {"x": record["array"][:2], "noise": rng.random(2)})
    whole = Dataset(cached(Numbers(20), big), examples.transform)
    batches = [take(train_batches(dataset, batch_size=8, seed=0), 6) for dataset in (examples, whole)]
    assert_same(*batches)


def test_fake_batches() -> None:
    spec = {
        "ids": ArraySpec((7,), np.int32, 8, 264),
        "image": ArraySpec((4, 4, 3), np.float32, -1, 1),
        "flag": ArraySpec((), np.bool_),
        "byte": ArraySpec((50,), np.uint8, 0, 256),
    }
    whole = take(fake_batches(spec, 8, 0), 5)
    for name, array_spec in spec.items():
        assert whole[0][name].shape == (8, *array_spec.shape) and whole[0][name].dtype == array_spec.dtype
    ids, image = (np.stack([batch[name] for batch in whole]) for name in ("ids", "image"))
    assert ids.min() >= 8 and ids.max() < 264 and np.ptp(ids) > 200
    assert image.min() >= -1 and image.max() < 1 and abs(image.mean()) < 0.1
    assert not (whole[0]["ids"] == whole[1]["ids"]).all()
    assert not (whole[0]["ids"] == next(fake_batches(spec, 8, 1))["ids"]).all()
    again = fake_batches(spec, 8, 0)
    again.set_state({**again.get_state(), "next_index": 3})
    assert_same(take(again, 2), whole[3:])
    half = next(fake_batches(spec, 8, 0, rows=[1, 6]))
    assert_same([half], [{key: array[[1, 6]] for key, array in whole[0].items()}])


def test_check_example_names_what_is_wrong() -> None:
    spec = {"ids": ArraySpec((3,), np.int32), "label": ArraySpec((), np.int32)}
    good = {"ids": np.zeros(3, np.int32), "label": np.int32(1)}
    check_example(spec, good, "gpt")
    for bad, message in (
        ({"ids": good["ids"]}, r"gpt: array 'label' is missing; the example has \['ids'\]"),
        (good | {"x": np.zeros(1)}, r"gpt: array 'x' is not in the spec, which has \['ids', 'label'\]"),
        (good | {"ids": np.zeros(4, np.int32)}, r"gpt: array 'ids' should be \(3,\) int32, found \(4,\) int32"),
        (good | {"ids": np.zeros(3, np.int64)}, r"gpt: array 'ids' should be \(3,\) int32, found \(3,\) int64"),
    ):
        with pytest.raises(UsageError, match=message):
            check_example(spec, bad, "gpt")


def test_bad_batches_are_refused_in_one_line() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"batch_size": 6, "rows": [5, 6]}, r"rows \[5, 6\] are not some of the 6 of a batch"),
        ({"batch_size": 0}, "batch size must be at least 1, found 0"),
        ({"batch_size": 4, "rows": []}, r"rows \[\] are not some of the 4 of a batch"),
    )
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message):
            train_batches(NUMBERS, seed=0, **arguments)
        with pytest.raises(UsageError, match=message):
            eval_batches(NUMBERS, **arguments)
    with pytest.raises(UsageError, match="seed must be 0 or more, found -1"):
        train_batches(NUMBERS, batch_size=2, seed=-1)
    with pytest.raises(UsageError, match="limit must be at least 1 example or None for all, found 0"):
        eval_batches(NUMBERS, batch_size=2, limit=0)
    for make in (lambda d: train_batches(d, batch_size=2, seed=0), lambda d: eval_batches(d, batch_size=2)):
        with pytest.raises(UsageError, match="the dataset is empty"):
            make(Dataset(Numbers(0), noisy))


def test_ragged_examples_and_errors_in_threads_reach_the_caller() -> None:
    ragged = Dataset(Numbers(4), lambda record, rng: {"x": np.zeros(record["value"])})
    with pytest.raises(UsageError, match="array 'x' differs between examples of a batch: "):
        next(train_batches(ragged, batch_size=4, seed=0))

    def broken(record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        raise UsageError(f"record {record['id']} is broken")

    with pytest.raises(UsageError, match="is broken"):
        next(train_batches(Dataset(Numbers(4), broken), batch_size=4, seed=0))


def test_a_mixture_keeps_its_shares_and_the_small_part_repeats() -> None:
    mixture = mix([Dataset(Numbers(100), noisy), Dataset(Numbers(5, offset=1000), noisy)], [3, 1])
    assert len(mixture) == 105
    values = np.concatenate([batch["value"] for batch in take(train_batches(mixture, batch_size=20, seed=0), 20)])
    small = values >= 1000
    assert small.sum() == 100
    assert (np.bincount(values[small] - 1000) == 20).all()
    assert (np.bincount(values[~small]) == 3).all()
    per_batch = small.reshape(20, 20).sum(axis=1)
    assert per_batch.min() >= 4 and per_batch.max() <= 6
    halves = range(10), range(10, 20)
    parts = [take(train_batches(mixture, batch_size=20, seed=0, rows=rows), 20) for rows in halves]
    joined = np.concatenate([np.concatenate([a["value"], b["value"]]) for a, b in zip(*parts, strict=True)])
    np.testing.assert_array_equal(joined, values)
    resumed = train_batches(mixture, batch_size=20, seed=0)
    resumed.set_state({**resumed.get_state(), "next_index": 13})
    np.testing.assert_array_equal(next(resumed)["value"], values[260:280])
    in_order = np.concatenate([batch["value"] for batch in eval_batches(mixture, batch_size=15)])
    assert in_order.tolist() == [*range(100), *range(1000, 1005)]


def test_bad_mixtures_are_refused() -> None:
    other = Dataset(Numbers(3), lambda record, rng: {"value": np.int32(0), "noise": np.zeros(3, np.float32)})
    for datasets, weights, message in (
        ([], [], "nothing to mix"),
        ([NUMBERS], [1, 2], "1 datasets need 1 weights, found 2"),
        ([NUMBERS, NUMBERS], [1, 0], "mixing weights must be above 0, found 0"),
        ([NUMBERS, other], [1, 1], r"dataset 1 of the mixture gives .*\(3,\).*, but dataset 0 gives .*\(2,\)"),
    ):
        with pytest.raises(UsageError, match=message):
            mix(datasets, weights)
