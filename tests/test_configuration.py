"""A mapping becomes a dataclass, or one line that says why not; and every recipe in configs/ can be built."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import tiny

import launch
from unimodal.backbone import BackboneConfig
from unimodal.configuration import nearest, typed
from unimodal.errors import UsageError
from unimodal.settings import GeneralConfig
from unimodal.training.loop import LoopConfig, turns
from unimodal.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Example:
    """One field of each sort."""

    size: int
    rate: float = 0.5
    flag: bool = False
    name: str = "a"
    limit: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = field(default_factory=tuple)


def test_defaults_and_conversions() -> None:
    assert typed(Example, {"size": 3}, "here") == Example(3)
    made = typed(Example, {"size": 3, "rate": 1, "pair": [1, 2.5], "many": [1, 2, 3], "limit": 4, "flag": True}, "here")
    assert made == Example(3, 1.0, True, "a", 4, (1.0, 2.5), (1, 2, 3))
    assert type(made.rate) is float
    assert type(made.pair) is tuple
    assert [type(v) for v in made.pair] == [float, float]
    assert typed(Example, {"size": 3, "limit": None}, "here").limit is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"size": 1, "rte": 2.0}, "unknown config field a.b.rte; did you mean rate?"),
        (
            {"size": 1, "zzzzzz": 2.0},
            "unknown config field a.b.zzzzzz; there is flag, limit, many, name, pair, rate, size",
        ),
        ({"rate": 1.0}, "config field a.b.size is missing"),
        ({"size": "3"}, "config field a.b.size must be int, but is '3'"),
        ({"size": 3.0}, "config field a.b.size must be int, but is 3.0"),
        ({"size": True}, "config field a.b.size must be int, but is True"),
        ({"size": None}, "config field a.b.size must be int, but is None"),
        ({"size": 1, "rate": True}, "config field a.b.rate must be float, but is True"),
        ({"size": 1, "rate": "1"}, "config field a.b.rate must be float, but is '1'"),
        ({"size": 1, "flag": 1}, "config field a.b.flag must be bool, but is 1"),
        ({"size": 1, "name": 1}, "config field a.b.name must be str, but is 1"),
        ({"size": 1, "limit": "all"}, "config field a.b.limit must be int, but is 'all'"),
        ({"size": 1, "pair": [1]}, "config field a.b.pair must have 2 values, but is (1,)"),
        ({"size": 1, "pair": "ab"}, "config field a.b.pair must be tuple[float, float], but is 'ab'"),
        ({"size": 1, "many": 3}, "config field a.b.many must be tuple[int, ...], but is 3"),
        ({"size": 1, "many": [1, 2.5]}, "config field a.b.many must be int, but is 2.5"),
    ],
)
def test_refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        typed(Example, mapping, "a.b")
    assert str(error.value) == message


def test_a_section_that_is_no_mapping_is_named() -> None:
    with pytest.raises(UsageError, match="config field here must be a group of fields, but is 3"):
        typed(Example, 3, "here")  # pyright: ignore[reportArgumentType]


def test_nearest() -> None:
    assert nearest("stepz", ["steps", "seed"]) == "did you mean steps?"
    assert nearest("qqq", ["steps", "seed"]) == "there is seed, steps"


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (LoopConfig, dict(steps=0), "steps must be at least 1"),
        (LoopConfig, dict(log_every=0), "log_every must be at least 1"),
        (LoopConfig, dict(max_bad_steps=0), "max_bad_steps must be at least 1"),
        (LoopConfig, dict(schedule="sometimes"), "schedule 'sometimes' is not one of sum, alternate"),
        (OptimizerConfig, dict(accumulate=0), "optimizer.accumulate must be at least 1"),
        (OptimizerConfig, dict(learning_rate=0.0), "optimizer.learning_rate must be positive"),
        (BackboneConfig, dict(width=30), "width=30 is not divisible by heads=4"),
        (BackboneConfig, dict(kv_heads=3), "heads=4 is not divisible by kv_heads=3"),
        (BackboneConfig, dict(depth=0), "depth must be at least 1"),
        (BackboneConfig, dict(dropout=1.0), "dropout must be at least 0 and below 1"),
        (BackboneConfig, dict(activation="glu"), "activation='glu' is not one of gelu"),
        (BackboneConfig, dict(norm="batch"), "norm='batch' is not one of layer, rms"),
        (BackboneConfig, dict(dtype="float8"), "dtype='float8' is not one of float32"),
        (BackboneConfig, dict(remat="some"), "remat='some' is not one of none"),
        (BackboneConfig, dict(head_size=5, rope_theta=1e4), "the head size must be even, but is 5"),
    ],
)
def test_bad_values(cls: type[Any], change: dict[str, Any], message: str) -> None:
    good: dict[type[Any], dict[str, Any]] = {
        LoopConfig: dict(steps=5),
        BackboneConfig: dict(width=32, depth=2, heads=4),
    }
    typed(cls, good.get(cls, {}), "here")
    with pytest.raises(UsageError) as error:
        typed(cls, {**good.get(cls, {}), **change}, "here")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_learning_rate_warms_up_and_decays() -> None:
    schedule = OptimizerConfig(learning_rate=0.1, warmup=10, final=0.2).schedule(100)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    assert values == pytest.approx([0.0, 0.05, 0.1, 0.06, 0.02], rel=1e-4)


def named(**weights: float) -> list[Any]:
    return [SimpleNamespace(name=name, weight=weight) for name, weight in weights.items()]


def test_alternating_tasks_take_turns_by_weight() -> None:
    who = turns(named(a=3.0, b=1.0, c=2.0), "alternate")
    order = [who(step) for step in range(60)]
    assert all(len(names) == 1 for names in order)
    assert Counter(names[0] for names in order) == dict(a=30, b=10, c=20)
    assert order[:6] == order[6:12]  # a pure function of the step, with a short period
    # Turns are spread out: nobody trains more than twice in a row, however the weights lie.
    assert all(len(set(order[i : i + 3])) > 1 for i in range(len(order) - 2))


def test_equal_weights_alternate_strictly() -> None:
    who = turns(named(a=1.0, b=1.0), "alternate")
    assert [who(step)[0] for step in range(4)] == ["a", "b", "a", "b"]


def test_summed_tasks_train_at_every_step() -> None:
    who = turns(named(a=3.0, b=1.0), "sum")
    assert [who(step) for step in range(3)] == [("a", "b")] * 3


# What a recipe cannot be built without.
ARGUMENTS = {"finetune": (str(tiny.ROOT / "tests" / "reference" / "interop" / "vit_base"),)}
RECIPES = sorted(path.stem for path in (tiny.ROOT / "configs").glob("*.py") if path.stem not in ("common", "__init__"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built(name: str) -> None:
    import launch

    recipe = importlib.import_module(f"configs.{name}").get_config(*ARGUMENTS.get(name, ()))
    config = launch.as_plain(recipe)
    experiment = tiny.build({**config, "mesh": dict(data=1)})
    arrays = jax.tree.leaves(experiment.model)
    assert sum(math.prod(leaf.shape) for leaf in arrays) > 1000
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in arrays)
    for task in experiment.tasks:
        assert task.inputs(experiment.model).spec
        assert (experiment.tokens[task.name] > 0) == bool(experiment.model.backbones)  # a discrete VAE has none
        assert task.name in experiment.model.heads


def test_there_are_recipes() -> None:
    assert {"demo", "demo_solo"} <= set(RECIPES)


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
        (dict(seed=2**63), r"config\.seed must fit in 64 bits, but has 19 digits"),
        (dict(tasks__gpt__batch_size=-(10**30)), r"tasks\.gpt\.batch_size must fit in 64 bits, but has 31 digits"),
        (dict(tasks__vit__images__shift=-1), r"tasks\.vit\.images\.shift must be finite and at least 0, but is -1"),
        (dict(tasks__gpt__weight=float("nan")), r"tasks\.gpt\.weight must be finite and at least 0, but is nan"),
        (dict(tasks__vit__images__jitter=[0.1, float("inf"), 0.1]), r"tasks\.vit\.images\.jitter must be finite"),
        (dict(tasks__gpt__texts__length=0), r"texts\.length must be at least 1, but is 0"),
        (dict(backbones__shared__dtype=["float32"]), r"backbones\.shared\.dtype must be str, but is \['float32'\]"),
        (dict(backbones__shared__rope_scaling={}), r"rope_scaling must be tuple\[float, ...\], but is \{\}"),
        (dict(backbones__shared__rope_scaling=[]), r"rope_scaling must be \(factor,\) or .*, but is \(\)"),
        (dict(backbones__shared__rope_scaling=[8.0, 1.0]), r"rope_scaling must be \(factor,\) or"),
        (dict(backbones__shared__rope_scaling=[0.0]), r"rope_scaling must be \(factor,\) or"),
        (dict(backbones__shared__rope_scaling=[8.0, 4.0, 1.0, 512.0]), r"low below high"),
        (dict(tasks__vit__pooling="centre"), "pool 'centre' is not one of first, first_two, mean, last"),
        (dict(tasks__vit__pooling=[1]), r"tasks\.vit\.pooling must be str, but is \[1\]"),
        (dict(tokenizers__image__channels=0), "image channels must be at least 1, but is 0"),
        (dict(tokenizers__image__patch=0), "image patch must be at least 1, but is 0"),
        (dict(tokenizers__image__registers=-1), "image registers must be at least 0, but is -1"),
        (dict(tokenizers__image__stride=[8, 0]), r"image stride must be at least 1, but is \(8, 0\)"),
        (dict(tokenizers__audio__channels=-1), "audio channels must be at least 1, but is -1"),
        (dict(tokenizers__audio__position_groups=0), "audio position_groups must be at least 1, but is 0"),
        (dict(tokenizers__audio__param_dtype="int8"), "audio param_dtype='int8' is not one of float32"),
        (dict(tokenizers__text__vocabulary=0), "text vocabulary must be at least 1, but is 0"),
        (dict(keep_checkpoints=0), "keep_checkpoints must be at least 1"),
        (dict(schedule="both"), "schedule 'both' is not one of sum, alternate"),
        (dict(seed="lucky"), r"config\.seed must be int"),
        (dict(seed=-1), "seed must be 0 or more"),
        (dict(eval_limit="few"), r"config\.eval_limit must be int"),
        (dict(eval_limit=0), "eval_limit must be at least 1"),
        (dict(optimizer__learning_rat=1.0), r"optimizer\.learning_rat; did you mean learning_rate\?"),
        (dict(optimizer__learning_rate=0.0), "learning_rate must be positive"),
        (dict(optimizer__learning_rate=float("nan")), "learning_rate must be positive"),
        (
            dict(optimizer__weight_decay=float("inf")),
            r"optimizer\.weight_decay must be finite and at least 0, but is inf",
        ),
        (dict(tasks__gpt__texts__length=32), "text of 32 tokens is longer than the position table, max_length=16"),
        (dict(tasks__wav2vec2=dict(sounds=dict(seconds=0.001))), "16 audio samples are too short for one frame"),
        (dict(optimizer__accumulate=0), "accumulate must be at least 1"),
        (dict(optimizer__warmup=-1), "warmup must be finite and at least 0"),
        (dict(optimizer__b1=1.0), r"optimizer\.b1 must be at least 0 and below 1"),
        (dict(optimizer__clip=-1.0), r"optimizer\.clip must be finite and at least 0"),
        (dict(optimizer__weight_decay=-1.0), r"optimizer\.weight_decay must be finite and at least 0"),
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
        (dict(tasks__gpt__texts__lenght=5), r"tasks\.gpt\.texts\.lenght; did you mean length\?"),
        (dict(tasks__gptt=dict()), r"there is no task 'gptt' in tasks/; did you mean gpt\?"),
        (dict(tasks__gpt__tokenizer="txt"), r"tasks\.gpt\.tokenizer='txt' is not among the tokenizers: text"),
        (dict(tasks__wav2vec2__backbone=""), r"tasks\.wav2vec2\.backbone='' is not among the backbones: shared"),
        (dict(tasks__wav2vec2__code_size=193), r"code_size=193 is not divisible by groups=2"),
        (
            dict(tasks__clip__image_head__project=False),
            r"image embeddings have \d+ and text embeddings have \d+ numbers",
        ),
        (dict(tasks__vit__backbone="other"), r"tasks\.vit\.backbone='other' is not among the backbones: shared"),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_part_that_is_not_there_is_one_line_in_every_task(kind: str) -> None:
    """Each field that names a tokenizer or a backbone, with the name of none. Only a modality that is not read may be ""."""
    fields = [
        field for field in dataclasses.fields(launch.task_class(kind)) if field.name.endswith(("tokenizer", "backbone"))
    ]
    assert fields
    for part in fields:
        for name in ("", "nowhere"):
            if (part.default, name) != ("", ""):
                with pytest.raises(UsageError) as caught:
                    tiny.build(tiny.plain(kind, **{f"tasks__{kind}__{part.name}": name}))
                assert "\n" not in str(caught.value)


def test_two_tasks_of_one_kind() -> None:
    experiment = build(tasks__second=dict(kind="gpt", batch_size=8, texts=dict(length=8)))
    assert [type(task).__name__ for task in experiment.tasks] == ["Gpt", "Vit", "Gpt"]
    assert set(experiment.model.heads) == {"gpt", "vit", "second"}


def test_every_field_of_a_run_can_be_set_on_a_command_line() -> None:
    """Recipes are locked: what the base lacks is an unknown field."""
    from configs import common
    from unimodal.command.recipe import change

    config = common.base()
    for each in [one for kind in (GeneralConfig, LoopConfig) for one in dataclasses.fields(kind)]:
        if each.name not in ("fake_data", "profile"):  # a flag of its own, and a group
            assert each.name in config, each.name
            assert config[each.name] == each.default or each.name == "steps", each.name
    change(config, "workers", "4")
    change(config, "compare_replicas_every", "1000")
    assert (config.workers, config.compare_replicas_every) == (4, 1000)
