"""The edge where a config stops being a dictionary."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny

from unimodal.configuration import nearest, typed
from unimodal.errors import UsageError
from unimodal.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every kind of field that configs have."""

    flour: int
    salt: float = 0.5
    name: str = "bread"
    baked: bool = True
    oven: int | None = None
    shape: tuple[int, int] = (1, 2)
    spices: tuple[str, ...] = ()
    extra: Any = None


def test_values_of_the_right_type_pass() -> None:
    made = typed(Recipe, dict(flour=3, salt=1, oven=None, shape=[3, 4], spices=["a", "b"], extra={}), "here")
    assert made == Recipe(3, 1.0, "bread", True, None, (3, 4), ("a", "b"), {})
    assert isinstance(made.salt, float)
    assert typed(Recipe, dict(flour=3, oven=200), "here").oven == 200


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(flour=1, slat=2), r"unknown config field here\.slat; did you mean salt\?"),
        (dict(flour=1, zzz=2), r"unknown config field here\.zzz; there is baked, extra, flour"),
        (dict(), r"config field here\.flour is missing"),
        (dict(flour="1"), r"here\.flour must be int, but is '1'"),
        (dict(flour=1.0), r"here\.flour must be int, but is 1\.0"),
        (dict(flour=True), r"here\.flour must be int, but is True"),
        (dict(flour=None), r"here\.flour must be int, but is None"),
        (dict(flour=1, salt="much"), r"here\.salt must be float, but is 'much'"),
        (dict(flour=1, salt=True), r"here\.salt must be float, but is True"),
        (dict(flour=1, name=2), r"here\.name must be str, but is 2"),
        (dict(flour=1, baked=1), r"here\.baked must be bool, but is 1"),
        (dict(flour=1, oven="hot"), r"here\.oven must be int, but is 'hot'"),
        (dict(flour=1, shape=[1]), r"here\.shape must have 2 values, but is \(1,\)"),
        (dict(flour=1, shape=3), r"here\.shape must be tuple\[int, int\], but is 3"),
        (dict(flour=1, shape=[1, "x"]), r"here\.shape must be int, but is 'x'"),
        (dict(flour=1, spices="ab"), r"here\.spices must be tuple\[str, \.\.\.\], but is 'ab'"),
        (dict(flour=dict(a=1)), r"here\.flour must be int, but is \{'a': 1\}"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        typed(Recipe, fields, "here")
    assert "\n" not in str(caught.value)


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UsageError, match="config field here must be a group of fields, but is 3"):
        typed(Recipe, 3, "here")  # pyright: ignore[reportArgumentType]


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UsageError, match="config field here must be a group of fields, but is 3"):
        typed(Example, 3, "here")  # pyright: ignore[reportArgumentType]


def test_nearest() -> None:
    assert nearest("lenght", ["length", "width"]) == "did you mean length?"
    assert nearest("xyz", ["b", "a"]) == "there is a, b"


# --- whole configs ----------------------------------------------------------------------------------------------------


def build(**changes: Any) -> Experiment:
    return tiny.build(tiny.plain("gpt", "vit", **changes))


def test_the_tiny_config_is_right() -> None:
    experiment = build()
    assert [task.name for task in experiment.tasks] == ["gpt", "vit"]
    assert experiment.mesh.size == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(stepz=3), r"unknown config field config\.stepz; did you mean steps\?"),
        (dict(steps="many"), r"config\.steps must be int"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(log_every=0), "log_every must be at least 1"),
        (dict(checkpoint_every=-1), "checkpoint_every must be at least 0"),
        (dict(eval_every=-5), "eval_every must be at least 0"),
        (dict(keep_checkpoints=0), "keep_checkpoints must be at least 1"),
        (dict(schedule="both"), "schedule 'both' is not one of sum, alternate"),
        (dict(seed="lucky"), r"config\.seed must be int"),
        (dict(seed=-1), "seed must be 0 or more"),
        (dict(eval_limit="few"), r"config\.eval_limit must be int"),
        (dict(eval_limit=0), "eval_limit must be at least 1"),
        (dict(optimizer__learning_rat=1.0), r"optimizer\.learning_rat; did you mean learning_rate\?"),
        (dict(optimizer__learning_rate=0.0), "learning_rate must be positive"),
        (dict(optimizer__accumulate=0), "accumulate must be at least 1"),
        (dict(optimizer__warmup=-1), "warmup must be at least 0"),
        (dict(optimizer__b1=1.0), r"optimizer\.b1 must be at least 0 and below 1"),
        (dict(optimizer__clip=-1.0), r"optimizer\.clip must be at least 0"),
        (dict(optimizer__weight_decay=-1.0), r"optimizer\.weight_decay must be at least 0"),
        (dict(mesh__fdsp=2), r"mesh\.fdsp; did you mean fsdp\?"),
        (dict(mesh__data=16), "needs 16 devices, but there are 8"),
        (dict(mesh__tensor=8), r"heads=4 \(.*\) is not divisible by mesh tensor=8"),
        (dict(mesh__data=8, tasks__gpt__batch_size=12), r"tasks\.gpt\.batch_size=12 is not divisible by 8"),
        (dict(optimizer__accumulate=3), r"tasks\.gpt\.batch_size=8 is not divisible by 3 \(.*accumulate=3\)"),
        (dict(tasks__gpt__batch_size=0), r"batch_size must be at least 1"),
        (dict(backbones__shared__width=30), r"width=30 is not divisible by heads=4"),
        (dict(backbones__shared__wdith=30), r"backbones\.shared\.wdith; did you mean width\?"),
        (dict(backbones={}), "no backbones"),
        (dict(tasks={}), "no tasks"),
        (dict(backbones__shared=7), r"backbones\.shared must be a group of fields, but is 7"),
        (dict(tasks__gpt=None), r"tasks\.gpt must be a group of fields, but is None"),
        (dict(tokenizers__image__patch=5), "image_size 16x16 is not divisible by patch=5"),
        (dict(tokenizers__speech=dict()), r"tokenizer kind 'speech' is not one of .*audio"),
        (dict(tasks__gpt__lenght=5), r"tasks\.gpt\.lenght; did you mean length\?"),
        (dict(tasks__gptt=dict()), r"there is no task 'gptt' in tasks/; did you mean gpt\?"),
        (dict(tasks__gpt__tokenizer="txt"), r"tasks\.gpt\.tokenizer='txt' is not among the tokenizers: text"),
        (dict(tasks__vit__backbone="other"), r"tasks\.vit\.backbone='other' is not among the backbones: shared"),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_two_tasks_of_one_kind() -> None:
    experiment = build(tasks__second=dict(kind="gpt", batch_size=8, length=8))
    assert [type(task).__name__ for task in experiment.tasks] == ["Gpt", "Vit", "Gpt"]
    assert set(experiment.model.heads) == {"gpt", "vit", "second"}


# --- whole configs ----------------------------------------------------------------------------------------------------


def build(**changes: Any) -> Any:
    return tiny.build(tiny.plain("gpt", "vit", **changes))


def test_the_tiny_config_is_right() -> None:
    experiment = build()
    assert [task.name for task in experiment.tasks] == ["gpt", "vit"]
    assert experiment.mesh.size == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(stepz=3), r"unknown config field config\.stepz; did you mean steps\?"),
        (dict(steps="many"), r"config\.steps must be int"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(log_every=0), "log_every must be at least 1"),
        (dict(checkpoint_every=-1), "checkpoint_every must be at least 0"),
        (dict(eval_every=-5), "eval_every must be at least 0"),
        (dict(keep_checkpoints=0), "keep_checkpoints must be at least 1"),
        (dict(schedule="both"), "schedule 'both' is not one of sum, alternate"),
        (dict(seed="lucky"), r"config\.seed must be int"),
        (dict(seed=-1), "seed must be 0 or more"),
        (dict(eval_limit="few"), r"config\.eval_limit must be int"),
        (dict(eval_limit=0), "eval_limit must be at least 1"),
        (dict(optimizer__learning_rat=1.0), r"optimizer\.learning_rat; did you mean learning_rate\?"),
        (dict(optimizer__learning_rate=0.0), "learning_rate must be positive"),
        (dict(optimizer__accumulate=0), "accumulate must be at least 1"),
        (dict(optimizer__warmup=-1), "warmup must be at least 0"),
        (dict(optimizer__b1=1.0), r"optimizer\.b1 must be at least 0 and below 1"),
        (dict(optimizer__clip=-1.0), r"optimizer\.clip must be at least 0"),
        (dict(optimizer__weight_decay=-1.0), r"optimizer\.weight_decay must be at least 0"),
        (dict(mesh__fdsp=2), r"mesh\.fdsp; did you mean fsdp\?"),
        (dict(mesh__data=16), "needs 16 devices, but there are 8"),
        (dict(mesh__tensor=8), r"heads=4 \(.*\) is not divisible by mesh tensor=8"),
        (dict(mesh__data=8, tasks__gpt__batch_size=12), r"tasks\.gpt\.batch_size=12 is not divisible by 8"),
        (dict(optimizer__accumulate=3), r"tasks\.gpt\.batch_size=8 is not divisible by 3 \(.*accumulate=3\)"),
        (dict(tasks__gpt__batch_size=0), r"batch_size must be at least 1"),
        (dict(backbones__shared__width=30), r"width=30 is not divisible by heads=4"),
        (dict(backbones__shared__wdith=30), r"backbones\.shared\.wdith; did you mean width\?"),
        (dict(backbones={}), "no backbones"),
        (dict(tasks={}), "no tasks"),
        (dict(backbones__shared=7), r"backbones\.shared must be a group of fields, but is 7"),
        (dict(tasks__gpt=None), r"tasks\.gpt must be a group of fields, but is None"),
        (dict(tokenizers__image__patch=5), "image_size 16x16 is not divisible by patch=5"),
        (dict(tokenizers__speech=dict()), r"tokenizer kind 'speech' is not one of .*audio"),
        (dict(tasks__gpt__lenght=5), r"tasks\.gpt\.lenght; did you mean length\?"),
        (dict(tasks__gptt=dict()), r"there is no task 'gptt' in tasks/; did you mean gpt\?"),
        (dict(tasks__gpt__tokenizer="txt"), r"tasks\.gpt\.tokenizer='txt' is not among the tokenizers: text"),
        (dict(tasks__vit__backbone="other"), r"tasks\.vit\.backbone='other' is not among the backbones: shared"),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_two_tasks_of_one_kind() -> None:
    experiment = build(tasks__second=dict(kind="gpt", batch_size=8, length=8))
    assert [type(task).__name__ for task in experiment.tasks] == ["Gpt", "Vit", "Gpt"]
    assert set(experiment.model.heads) == {"gpt", "vit", "second"}
