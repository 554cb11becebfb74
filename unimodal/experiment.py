"""A config turned into objects: the experiment that `launch.py` trains, evaluates or only describes."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data
from unimodal.backbone import BackboneConfig
from unimodal.configuration import group, typed
from unimodal.errors import UsageError
from unimodal.evaluation.run import Evaluator
from unimodal.interop.start import Start, start_from
from unimodal.model import Model, assemble, tokenizer_module
from unimodal.sharding import local_rows, make_mesh, parameter_count, parameter_table, shardings
from unimodal.storage import require_backend
from unimodal.task import Task
from unimodal.training.checkpoint import WorkdirStart, is_workdir, start_from_workdir
from unimodal.training.loop import LoopConfig, check_batches
from unimodal.training.meters import ProfileConfig
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.step import Program

_GENERAL = ("seed", "eval_limit", "init_from", "init_skip", "fake_data")
_GROUPS = (*_GENERAL, "mesh", "profile", "optimizer", "tokenizers", "backbones", "tasks")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclass(frozen=True)
class GeneralConfig:
    """seed of weights, data order and dropout; eval_limit: batches of each evaluation during training (None: all).

    init_from: directory of a published checkpoint to start from (see `interop.start`), or a workdir of ours; init_skip:
    a regular expression, parameters whose path it is found in start afresh all the same. fake_data: train on random
    batches of the right shapes, as a run's config.json says of itself.
    """

    seed: int = 0
    eval_limit: int | None = None
    init_from: str | None = None
    init_skip: str | None = None
    fake_data: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, but is {self.seed}")
        if self.eval_limit is not None and self.eval_limit < 1:
            raise UsageError(f"eval_limit must be at least 1, but is {self.eval_limit}")


@dataclass(frozen=True)
class Experiment:
    """A config turned into objects. Nothing here has touched data or made an array."""

    seed: int
    eval_limit: int | None
    loop: LoopConfig
    optimizer: OptimizerConfig
    mesh: jax.sharding.Mesh
    tokenizers: Mapping[str, tuple[str, Any]]
    backbones: Mapping[str, BackboneConfig]
    tasks: Sequence[Task]
    init_from: str | None = None
    init_skip: str | None = None
    fake_data: bool = False

    @cached_property
    def program(self) -> Program:
        make = partial(
            assemble,
            tokenizers=self.tokenizers,
            backbones=self.backbones,
            heads={task.name: task.heads for task in self.tasks},
        )
        # In a sum every parameter is some task's; where tasks take turns, most are nobody's for the moment.
        optimizer = make_optimizer(self.optimizer, self.loop.steps, lazy=self.loop.schedule == "alternate")
        start = None if self.init_from is None else lambda parameters: self.start.fill(parameters)
        return Program(make, optimizer, self.mesh, self.seed, self.optimizer.accumulate, start)

    @cached_property
    def model(self) -> Model:
        """The model as shapes."""
        return self.program.abstract_model()

    @cached_property
    def start(self) -> Start | WorkdirStart:
        """What the model takes from the checkpoint of `init_from`. Raises UsageError if it does not fit."""
        assert self.init_from is not None
        require_backend(self.init_from)
        if is_workdir(self.init_from):
            return start_from_workdir(self.init_from, nnx.state(self.model, nnx.Param), skip=self.init_skip)
        return start_from(self.init_from, self.model, self.tokenizers, self.backbones, skip=self.init_skip)

    def train_batches(self, task: Task) -> data.BatchIterator:
        spec = task.spec(self.model)
        rows = local_rows(self.mesh, task.batch_size, self.program.accumulate)
        if self.fake_data:
            return data.fake_batches(spec, task.batch_size, self.seed, rows)
        dataset = task.dataset(self.model, "train")
        data.check_example(spec, next(iter(dataset.ordered())), f"tasks.{task.name}")
        return data.train_batches(dataset, batch_size=task.batch_size, seed=self.seed, rows=rows)

    def evaluator(self, task: Task) -> Evaluator:
        dataset = task.dataset(self.model, "validation")
        rows = local_rows(self.mesh, task.batch_size)
        return Evaluator(task, self.mesh, data.eval_batches(dataset, batch_size=task.batch_size, rows=rows))


def build(config: Mapping[str, Any], task_class: Callable[[str], type[Any]], *, fake_data: bool = False) -> Experiment:
    """A plain nested mapping → Experiment. `task_class` finds the class of a task kind.

    Raises UsageError for anything that cannot be right, before data is read or an array made.
    """
    config = group(config, "config")
    for name in ("backbones", "tasks"):
        if not group(config.get(name, {}), name):
            raise UsageError(f"the config has no {name}")
    general = {key: config[key] for key in _GENERAL if key in config}
    if fake_data:
        general["fake_data"] = True
    loop = {key: value for key, value in config.items() if key not in _GROUPS}
    backbones = {n: typed(BackboneConfig, c, f"backbones.{n}") for n, c in config["backbones"].items()}
    tokenizers = {}
    for name, fields in group(config.get("tokenizers", {}), "tokenizers").items():
        kind = group(fields, f"tokenizers.{name}").get("kind", name)
        rest = {key: value for key, value in fields.items() if key != "kind"}
        tokenizers[name] = (kind, typed(tokenizer_module(kind).Config, rest, f"tokenizers.{name}"))
    tasks = [_make_task(name, fields, task_class, tokenizers, backbones) for name, fields in config["tasks"].items()]
    mesh = make_mesh(**vars(typed(MeshConfig, config.get("mesh", {}), "mesh")))
    experiment = Experiment(
        **vars(typed(GeneralConfig, general, "config")),
        loop=replace(
            typed(LoopConfig, loop, "config"), profile=typed(ProfileConfig, config.get("profile", {}), "profile")
        ),
        optimizer=typed(OptimizerConfig, config.get("optimizer", {}), "optimizer"),
        mesh=mesh,
        tokenizers=tokenizers,
        backbones=backbones,
        tasks=tasks,
    )
    check_batches(tasks, experiment.program)
    with _sizes():
        shardings(experiment.model, mesh)  # heads that the mesh does not divide are an error, now
        jax.eval_shape(
            experiment.program.optimizer.init, nnx.state(experiment.model, nnx.Param)
        )  # and what cannot freeze
        for task in tasks:
            _rehearse(task, experiment.model)
    return experiment


@contextlib.contextmanager
def _sizes() -> Iterator[None]:
    """Turn what a size of zero, or an endless one, ends in into a UsageError that says where."""
    try:
        yield
    except (ZeroDivisionError, OverflowError) as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        place = f"{ours[-1].filename}, line {ours[-1].lineno}: {ours[-1].line}"
        raise UsageError(f"a size in the config is 0 or too large: {error} ({place})") from error


def describe(experiment: Experiment) -> str:
    """What would run: mesh, parameters with their place, bytes per device, steps."""
    mesh, model = experiment.mesh, experiment.model
    rows = parameter_table(model, mesh)
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:<{width}}  {'×'.join(map(str, row['shape'])) or 'scalar':<16} "
        f"{'·'.join(row['axes']):<30} {row['spec']:<24} {row['bytes_per_device']:>10,} B/device"
        for row in rows
    ]
    each = sum(row["bytes_per_device"] for row in rows)
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return "\n".join(
        [
            *lines,
            f"mesh       {sizes} on {mesh.size} {mesh.devices.flat[0].device_kind} device(s)",
            f"parameters {parameter_count(rows):,} in {len(rows)} arrays, {each:,} bytes per device (and twice that for AdamW)",
            f"steps      {experiment.loop.steps}, schedule {experiment.loop.schedule!r}",
            *(f"task       {t.name}: batch {t.batch_size}, weight {t.weight:g}" for t in experiment.tasks),
        ]
    )


def _make_task(
    name: str,
    fields: Mapping[str, Any],
    task_class: Callable[[str], type[Any]],
    tokenizers: Mapping[str, Any],
    backbones: Mapping[str, Any],
) -> Task:
    cls = task_class(group(fields, f"tasks.{name}").get("kind", name))
    rest = {key: value for key, value in fields.items() if key != "kind"}
    task = typed(cls, {"name": name, **rest}, f"tasks.{name}")
    for field in cls.__dataclass_fields__:
        value = getattr(task, field)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not 0 <= number < math.inf:  # nor NaN
                raise UsageError(f"tasks.{name}.{field} must be finite and at least 0, but is {value}")
    # A field called tokenizer or …_tokenizer names one of the model's, and so with backbones: a slip is found here.
    for field in cls.__dataclass_fields__:
        for suffix, made in (("tokenizer", tokenizers), ("backbone", backbones)):
            if field.endswith(suffix) and (value := getattr(task, field)) not in made:
                raise UsageError(f"tasks.{name}.{field}={value!r} is not among the {suffix}s: {', '.join(made)}")
    return task


def _rehearse(task: Task, model: Model) -> None:
    """The loss on shapes alone: what its tokenizers and heads refuse is an error now, before anything is written."""
    shapes = {k: jax.ShapeDtypeStruct((task.batch_size, *a.shape), a.dtype) for k, a in task.spec(model).items()}
    loss = lambda model, batch, key: task.loss(model, batch, key=key, step=jnp.int32(0))[0]  # noqa: E731
    jax.eval_shape(loss, model, shapes, jax.eval_shape(lambda: jax.random.key(0)))
