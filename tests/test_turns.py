"""Tasks that take turns train in the shares of their weights, exactly, whatever these are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from unimodal.errors import UsageError
from unimodal.training.turns import name_sets, shares, turns, whose_turn


def tasks(*weights: float) -> Any:
    return [SimpleNamespace(name="abcdef"[i], weight=weight) for i, weight in enumerate(weights)]


def in_turn(share: list[int]) -> list[int]:
    """The order by its definition, one step after another: who lags most behind goes next."""
    done, order = [0] * len(share), []
    for _ in range(sum(share)):
        i = min(range(len(share)), key=lambda i: ((done[i] + 0.5) / share[i], i))
        done[i] += 1
        order.append(i)
    return order


@pytest.mark.parametrize(
    "share", [(1,), (1, 1), (1, 3), (3, 1), (2, 1, 1), (1, 2, 4), (5, 1, 5, 2), (7, 3, 1, 1, 1, 9)]
)
@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3])
def test_whole_ratios_keep_the_order_they_had(share: tuple[int, ...], scale: float) -> None:
    weights = [scale * each for each in share]
    who = turns(tasks(*weights), "alternate")
    assert ["abcdef".index(who(step)[0]) for step in range(2 * sum(share))] == 2 * in_turn(list(share))


@pytest.mark.parametrize("share", [(2, 3), (2, 5), (3, 4), (9, 4, 6, 25), (10, 14)])
def test_the_closed_form_is_the_definition(share: tuple[int, ...]) -> None:
    assert [whose_turn(step, share) for step in range(sum(share))] == in_turn(list(share))


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ((2, 3), [2, 3]),
        ((1, 1.4), [5, 7]),
        ((2, 5), [2, 5]),
        ((3, 4), [3, 4]),
        ((0.1, 0.3), [1, 3]),
        ((1.5, 0.6, 3), [5, 2, 10]),
    ],
)
def test_shares_are_exact(weights: tuple[float, ...], found: list[int]) -> None:
    assert shares(weights) == found
    who = turns(tasks(*weights), "alternate")
    count = [sum(who(step) == (name,) for step in range(10 * sum(found))) for name in "abcdef"[: len(weights)]]
    assert count == [10 * each for each in found]


def test_nobody_is_ever_a_turn_behind() -> None:
    weights = (3.14159, 2.71828, 0.57721, 1.41421)
    order = [turns(tasks(*weights), "alternate")(step)[0] for step in range(500)]
    for steps in range(1, 501):
        for name, weight in zip("abcd", weights, strict=True):
            assert abs(order[:steps].count(name) - steps * weight / sum(weights)) < 1.5


def test_a_rare_task_has_its_turn_and_its_step() -> None:
    who = turns(tasks(50_000, 1), "alternate")
    assert who(24_999) == ("a",) and who(25_000) == ("b",) and who(50_001 + 25_000) == ("b",)
    assert name_sets(tasks(50_000, 1), "alternate") == [("a",), ("b",)]
    assert name_sets(tasks(50_000, 1), "sum") == [("a", "b")] == [turns(tasks(50_000, 1), "sum")(7)]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(
        UsageError, match=r"^tasks.gpt.weight must be (above 0 and finite|finite and at least 0), but is "
    ):
        tiny.build(tiny.plain("gpt", "vit", tasks__gpt__weight=weight, schedule="alternate"))
