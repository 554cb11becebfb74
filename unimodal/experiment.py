"""A config turned into objects: the experiment that `launch.py` trains, evaluates or only describes."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unimodal import data
from unimodal.backbone import BackboneConfig
from unimodal.brought import check_codebooks, compared, config_of_run, preparation_of_init, readers_of, with_brought
from unimodal.continual import ContinualConfig
from unimodal.continual.strategy import Plan, Run, Strategy, strategy_of
from unimodal.data.epochs import epochs_of
from unimodal.errors import UsageError
from unimodal.evaluation.attached import attach
from unimodal.evaluation.evaluation import Evaluation
from unimodal.evaluation.run import MeshReader
from unimodal.interop.start import Start, start_from
from unimodal.ledger.start import SCHEME, LedgerStart, start_from_ledger
from unimodal.model import Model, StateMaker, assemble, watch
from unimodal.objectives.terms import as_scalars
from unimodal.settings import read_settings
from unimodal.sharding import from_local_rows, local_rows, make_mesh, parameter_count, parameter_table, shardings
from unimodal.storage import require_backend
from unimodal.task import Task
from unimodal.training.affinity import affinity
from unimodal.training.balance import with_uncertainty
from unimodal.training.expert_start import copied, copies
from unimodal.training.guidance import Guidance
from unimodal.training.loop import LoopConfig, check_batches
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.sequence import InSequence
from unimodal.training.step import Program, TrainState
from unimodal.training.workdir_start import WorkdirStart, start_from_workdir


@dataclass(frozen=True)
class Experiment:
    """A config turned into objects. Nothing here has touched data or made an array."""

    seed: int  # of weights, data order and dropout
    eval_limit: int | None  # batches of each evaluation during training; None: all
    loop: LoopConfig  # steps, logging, checkpoints
    optimizer: OptimizerConfig  # and its schedule
    mesh: jax.sharding.Mesh  # where everything lies
    tokenizers: Mapping[str, tuple[str, Any]]  # name → kind and its Config
    backbones: Mapping[str, BackboneConfig]  # by name
    tasks: Sequence[Task]  # in the order of the config
    init_from: str | None = None  # a published checkpoint or a workdir to start from
    init_skip: str | None = None  # a regular expression of parameters that start afresh all the same
    init_ema: bool = False  # take the average that the run of that workdir kept
    ema: float = 0.0  # decay of an average of the parameters; 0: none
    evaluate_ema: bool | None = None  # evaluations see the average; None: if there is one
    skip_spikes: float = 0.0  # see `settings.GeneralConfig`
    fake_data: bool = False  # train on random batches of the right shapes
    workers: int = 0  # processes for each task that make batches; 0: threads of this one
    ledger: str | None = None  # see `settings.GeneralConfig`
    ledger_branch: str = "main"  # see `settings.GeneralConfig`
    continual: ContinualConfig = ContinualConfig()  # what is done against forgetting
    decoded_cache: float = 0.0  # see `settings.GeneralConfig`
    affinity: int = 0  # see `settings.GeneralConfig`
    # evaluations that the config adds to those of tasks, by name
    attached: Mapping[str, Evaluation] = field(default_factory=dict)

    @cached_property
    def program(self) -> Program:
        wrap = with_uncertainty if self.loop.balance == "uncertainty" else lambda heads: heads
        make = partial(
            assemble,
            tokenizers=self.tokenizers,
            backbones=self.backbones,
            heads={task.name: wrap(task.heads) for task in self.tasks},
            states=_states(self.tasks, {} if self.strategy is None else self.strategy.states()),
        )
        # In a sum every parameter is some task's; where tasks take turns, most are nobody's for the moment.
        optimizer = make_optimizer(self.optimizer, self.loop.steps, lazy=self.loop.schedule != "sum")
        # Look into the checkpoint only when parameters are made: a run that goes on needs none of it.
        start = None if self.init_from is None else self._filled
        return Program(
            make,
            optimizer,
            self.mesh,
            self.seed,
            self.optimizer.accumulate,
            start,
            steps=self.loop.steps,
            ema=self.ema,
            evaluate_ema=self.evaluate_ema is not False,
            skip_spikes=self.skip_spikes,
            tasks=tuple(task.name for task in self.tasks),
            balance=self.loop.balance,
            guidance=Guidance() if self.strategy is None else self.strategy.guidance(),
        )

    @cached_property
    def model(self) -> Model:
        """The model as shapes."""
        return self.program.abstract_model()

    @cached_property
    def start(self) -> Start | WorkdirStart | LedgerStart:
        """The parts of the model that come from the checkpoint of `init_from`. Raises UsageError if it does not fit."""
        assert self.init_from is not None
        require_backend(self.init_from)
        config = config_of_run(self.init_from)
        if config is not None:
            check_codebooks(self.init_from, config, self.tokenizers)
            parameters = nnx.state(self.model, nnx.Param)
            run = start_from_ledger if self.init_from.startswith(SCHEME) else start_from_workdir
            found = run(self.init_from, parameters, skip=self.init_skip, ema=self.init_ema)
        elif self.init_ema:
            raise UsageError(f"init_ema is for workdirs, but {self.init_from} is none: leave it out")
        else:
            found = start_from(self.init_from, self.model, self.tokenizers, self.backbones, skip=self.init_skip)
        preparation = preparation_of_init(self.init_from, self.init_skip, self.tokenizers, self.backbones)
        lines = compared(preparation, readers_of(self.tasks, self.attached))
        experts = copies(found.fresh, found.loaded, self.init_skip)
        lines = (*lines, *(f"  copied  {name}  from {shared}" for name, shared in experts.items()))
        return replace(found, fresh=tuple(name for name in found.fresh if name not in experts), inputs=lines)

    def _filled(self, parameters: nnx.State) -> nnx.State:
        return copied(self.start.fill(parameters), self.start.loaded, self.init_skip)

    def train_batches(self, task: Task) -> data.BatchIterator:
        inputs = task.inputs(self.model)
        rows = local_rows(self.mesh, task.batch_size, self.program.accumulate)
        if self.fake_data:
            fake = lambda seed: data.fake_batches(inputs.spec, task.batch_size, seed, rows)  # noqa: E731
            return data.TaskBatches(fake, self.seed, task.name)
        dataset = self.reader.examples(task.inputs, self.model, "train")
        # Compare the first example with its spec before anything is compiled: a wrong shape would surface as a puzzle.
        example: Any = dataset.ordered()[0]
        data.check_example(inputs.spec, example, f"tasks.{task.name}")
        make = partial(data.train_batches, dataset, batch_size=task.batch_size, rows=rows, workers=self.workers)
        epochs = lambda batches: epochs_of(dataset, batches * task.batch_size, task.batch_size)  # noqa: E731
        return data.TaskBatches(lambda seed: make(seed=seed), self.seed, task.name, epochs)

    def task_affinity(self, state: TrainState) -> dict[str, Any]:
        """Measure how the tasks pull at the weights they share (see `training.affinity`), on the first batches of training."""

        def batches(name: str) -> Iterator[Mapping[str, jax.Array]]:
            task = next(task for task in self.tasks if task.name == name)
            return (from_local_rows(batch, self.mesh) for batch in self.train_batches(task))

        return affinity(self.program, {task.name: task for task in self.tasks}, state, batches, self.affinity)

    @cached_property
    def sequence(self) -> InSequence | None:
        """The schedule, if one task comes after the other. Raises UsageError for steps that do not add up."""
        return self.loop.in_sequence([task.name for task in self.tasks])

    @cached_property
    def strategy(self) -> Strategy | None:
        """What is done against forgetting, if one task comes after the other. Raises UsageError for tasks that do not suit it."""
        return None if self.sequence is None else strategy_of(self.continual, self.tasks, self.sequence)

    def plan(self) -> Plan:
        """Put the strategy against forgetting to work. Raises UsageError for data that do not suit it."""
        assert self.sequence is not None and self.strategy is not None
        batches = {task.name: self.train_batches(task) for task in self.tasks}
        dataset = lambda task: self.reader.examples(task.inputs, self.model, "train")  # noqa: E731
        run = Run(self.program, self.train_batches, None if self.fake_data else dataset)
        return self.strategy.put_to_work(Plan(self.sequence, self.tasks, batches), run)

    @cached_property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of the examples that the strategy keeps of each task, by its name."""
        if self.sequence is None or self.strategy is None or self.fake_data:
            return {}
        return dict(self.strategy.memory_bytes(self.model, self.sequence))

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """Every evaluation by name: those that tasks offer, then those that the config attaches."""
        found: dict[str, Evaluation] = {}
        for name, evaluation in [
            *(e for task in self.tasks for e in task.evaluations().items()),
            *self.attached.items(),
        ]:
            if name in found:
                raise UsageError(f"two evaluations are called {name!r}; give evaluations.{name} another name")
            found[name] = evaluation
        return found

    def checked_evaluations(self) -> Mapping[str, Evaluation]:
        """The evaluations, none of which is to fail at the end of a run for data that were wrong from its start. UsageError."""
        for evaluation in self.attached.values():
            if callable(check := getattr(evaluation, "check", None)):
                check()
        return self.evaluations

    @cached_property
    def reader(self) -> MeshReader:
        """The reader that evaluations run their functions with."""
        return MeshReader(self.mesh)

    def scores(self, model: Model, step: int) -> dict[str, Mapping[str, float]]:
        """Score the model during training, on `eval_limit` batches of each evaluation, or on all where a task has ended."""
        limit = self.eval_limit if self.sequence is None or self.sequence.ended(step) is None else None
        return {
            name: evaluation.measure(model, self.reader, limit=limit).score
            for name, evaluation in self.evaluations.items()
            if _due(evaluation, step)
        }

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Tokens that backbones see of one example of each task, for the meters.

        Counted while the loss is traced on shapes alone, which also finds what tokenizers and heads refuse.
        """
        return {task.name: _rehearse(task, self.model) for task in self.tasks}


def build(config: Mapping[str, Any], task_class: Callable[[str], type[Any]], *, fake_data: bool = False) -> Experiment:
    """A plain nested mapping → Experiment. `task_class` finds the class of a task kind.

    Raises UsageError for anything that cannot be right, before data is read or an array made.
    """
    config = with_brought({**config, "fake_data": True} if fake_data else config, task_class)
    found = read_settings(config, task_class)
    data.STORE.limit(int(found.general.decoded_cache * 2**30))
    mesh = make_mesh(**vars(found.mesh))
    experiment = Experiment(
        **vars(found.general),
        loop=found.loop,
        continual=found.continual,
        optimizer=found.optimizer,
        mesh=mesh,
        tokenizers=found.tokenizers,
        backbones=found.backbones,
        tasks=found.tasks,
        attached=attach(found.evaluations, found.tasks, found.tokenizers, found.backbones),
    )
    if found.general.ema and found.optimizer.name == "schedule_free":
        raise UsageError("schedule_free keeps an average of its own, which is evaluated; leave ema at 0")
    if found.loop.commit_every and found.general.ledger is None:
        raise UsageError(
            f"commit_every={found.loop.commit_every} needs a ledger to commit to, such as ledger=runs/ledger"
        )
    if experiment.sequence is None and found.continual != ContinualConfig():
        raise UsageError(f"continual is for schedule='sequence', but schedule is {found.loop.schedule!r}")
    check_batches(found.tasks, experiment.program)
    with _sizes():
        shardings(experiment.model, mesh)  # heads that the mesh does not divide are an error, now
        parameters = nnx.state(experiment.model, nnx.Param)
        jax.eval_shape(experiment.program.optimizer.init, parameters)  # and what cannot freeze
        assert experiment.tokens  # rehearses every loss, before anything is written
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
    """Describe what would run: mesh, parameters with their place, bytes per device, steps."""
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
            *_beside(experiment.program.abstract_state()),
            f"steps      {experiment.loop.steps}, schedule {experiment.loop.schedule!r}",
            *(f"task       {t.name}: batch {t.batch_size}, weight {t.weight:g}" for t in experiment.tasks),
        ]
    )


def _states(tasks: Sequence[Any], more: Mapping[str, StateMaker]) -> dict[str, StateMaker]:
    """What makes the state of each task that has any, and of what else keeps some. One owner's are joined."""
    made = {task.name: task.state for task in tasks if callable(getattr(task, "state", None))}
    both = {name: lambda model, a=made[name], b=more[name]: {**a(model), **b(model)} for name in made.keys() & more}
    return {**made, **more, **both}


def _beside(state: TrainState) -> list[str]:
    """Describe what is kept beside the parameters, where anything is."""
    found = []
    for word, part in (("kept", state.kept), ("average", state.ema)):
        leaves = jax.tree.leaves(part)
        each = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
        if leaves:
            count = sum(leaf.size for leaf in leaves)
            found.append(f"{word:<10} {count:,} numbers in {len(leaves)} arrays, {each:,} bytes per device")
    return found


def _due(evaluation: Evaluation, step: int) -> bool:
    """True if an evaluation runs at this step of training. Attached ones have a rhythm of their own, 0 for never."""
    every = getattr(evaluation, "every", 1)
    return every > 0 and step % every == 0


def _rehearse(task: Task, model: Model) -> int:
    """The loss on shapes alone, and how many tokens of each example its backbones see."""
    shapes = {k: jax.ShapeDtypeStruct((task.batch_size, *a.shape), a.dtype) for k, a in task.inputs(model).spec.items()}
    seen: list[int] = []

    def loss(model: Model, batch: Any, key: jax.Array) -> Any:
        watch(model, lambda tokens, _config: seen.append(tokens.x.shape[0] * tokens.x.shape[1]))
        return as_scalars(*task.loss(model, batch, key=key, step=jnp.int32(0)))[0]

    jax.eval_shape(loss, model, shapes, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(seen) // task.batch_size
