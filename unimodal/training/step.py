"""The state of a run and the compiled step that advances it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.objectives.terms import (
    Loss,
    Sum,
    TaskMetrics,
    as_scalars,
    joined,
    joined_metrics,
    needs,
    part_of,
)
from unimodal.sharding import initialise, path_name, shardings
from unimodal.state import Kept, advance, begin, take_pushed
from unimodal.training.balance import APART, balanced, of_equal_length, without_conflict
from unimodal.training.ema import Ema, advance_ema, begin_ema, with_ema
from unimodal.training.guidance import Guidance
from unimodal.training.optimizer import apply_updates, averaged, without_frozen
from unimodal.training.spikes import Spikes, begin_spikes, judge_numbers, judge_spikes

SPIKE = -1  # in the metric "bad"

LossFunction = Callable[..., tuple[Loss, TaskMetrics]]
Batches = Mapping[str, Mapping[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything a step changes."""

    step: jax.Array  # how many there were
    parameters: nnx.State  # trained by gradients
    variables: nnx.State  # what losses change as they go, micro-batch by micro-batch
    optimizer: Any  # its moments
    kept: nnx.State = field(
        default_factory=lambda: nnx.State({})
    )  # of tasks, advanced once a step: see `unimodal.state`
    ema: Ema | None = None  # the average of the parameters, where the run keeps one
    spikes: dict[str, Spikes] | None = None  # how each task's numbers were lately, where spikes are skipped


@dataclass(frozen=True)
class Program:
    """The fixed part of a run: the model's structure, how it is made, and the optimizer."""

    make_model: Callable[[jax.Array], nnx.Module]  # key → the whole model, with random weights
    optimizer: optax.GradientTransformation  # a gradient transformation of optax
    mesh: Mesh  # where everything lies
    seed: int  # of weights and of randomness in training
    accumulate: int = 1  # parts that each batch is taken in, one after the other
    # initialised parameters → the first ones, from published weights, say; None: as initialised
    start: Callable[[nnx.State], nnx.State] | None = None
    steps: int = 0  # of the whole run, for the schedules of what tasks keep
    ema: float = 0.0  # decay of an average of the parameters; 0: none
    evaluate_ema: bool = True  # `model` has that average in place of the last parameters
    balance: str = "fixed"  # between the losses of one step, see `training.balance`
    skip_spikes: float = 0.0  # see `spikes.judge_spikes`; 0: none are skipped
    tasks: tuple[str, ...] = ()  # whose spikes are judged
    guidance: Guidance = Guidance()  # what a step does with gradients beside following their sum

    def abstract_model(self) -> Any:
        """The model with shapes for arrays."""
        return jax.eval_shape(self.make_model, jax.random.key(self.seed))

    def init(self) -> TrainState:
        """The state before the first step, every array born in its shard."""
        key = jax.random.key(self.seed)
        if self.start is None:
            return initialise(self._make_state, self.mesh, key)
        parameters, variables, kept = initialise(self._make_weights, self.mesh, key)
        # Fill in the first parameters before the rest of the state is made, which may hold copies of them.
        parameters = self.start(parameters)
        more = initialise(self._begin, self.mesh, parameters, variables, kept)
        return TrainState(parameters=parameters, variables=variables, **more)

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state, for restoring into."""
        abstract = jax.eval_shape(self._make_state, jax.random.key(self.seed))
        # Name the shard of every array: a restore then reads each piece where it belongs.
        place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
        return jax.tree.map(place, abstract, shardings(abstract, self.mesh))

    def model(self, state: TrainState) -> Any:
        """The model with the weights of the state in it that are to be evaluated."""
        parameters = averaged(state.optimizer, state.parameters)
        if state.ema is not None and self.evaluate_ema:
            parameters = with_ema(state.ema, parameters)
        return nnx.merge(self.structure(), parameters, state.variables, state.kept)

    def first_model(self) -> Any:
        """The model before the first step. Of the optimizer's state nothing is made."""
        parameters, variables, kept = initialise(self._make_weights, self.mesh, jax.random.key(self.seed))
        if self.start is not None:
            parameters = self.start(parameters)
            kept = initialise(self._begin_kept, self.mesh, parameters, variables, kept)
        return nnx.merge(self.structure(), parameters, variables, kept)

    def structure(self) -> Any:
        return nnx.split(self.abstract_model(), nnx.Param, ..., graph=False)[0]

    def _make_weights(self, key: jax.Array) -> tuple[Any, Any, Any]:
        """Parameters, variables, and what is kept."""
        model = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), self.make_model(key))  # no weak types
        _, parameters, kept, variables = nnx.split(model, nnx.Param, Kept, ..., graph=False)
        return parameters, variables, kept

    def _make_state(self, key: jax.Array) -> TrainState:
        parameters, variables, kept = self._make_weights(key)
        return TrainState(parameters=parameters, variables=variables, **self._begin(parameters, variables, kept))

    def _begin(self, parameters: Any, variables: Any, kept: Any) -> dict[str, Any]:
        """The rest of the first state."""
        optimizer = self.optimizer.init(parameters)
        return {
            "step": jnp.zeros((), jnp.int32),
            "optimizer": optimizer,
            "kept": self._begin_kept(parameters, variables, kept),
            "ema": begin_ema(parameters, optimizer) if self.ema else None,
            "spikes": begin_spikes(self.tasks) if self.skip_spikes else None,
        }

    def _begin_kept(self, parameters: Any, variables: Any, kept: Any) -> Any:
        model = nnx.merge(self.structure(), *_anew((parameters, variables, kept)))
        begin(model)
        return nnx.split(model, Kept, ..., graph=False)[1]

    def step(self, losses: Mapping[str, tuple[LossFunction, float]]) -> Callable[[TrainState, Batches], Any]:
        """Compile one step on the weighted sum of `losses` (name → loss function and weight).

        step(state, batches) → (state, {name: metrics}). The state's buffers are donated. With `accumulate` = A each
        batch is [A, B/A, …], and the gradients are those of the whole batch. What is frozen for good has none. Where a loss
        or the gradient is not finite nothing but `state.step` changes, and the metric "bad" says so (see
        `parameter_names`); likewise for a spike, where they are skipped. What the tasks of `losses` keep is advanced once,
        with the whole batch's rows.
        """

        def run(state: TrainState, batches: Any) -> tuple[TrainState, Any]:
            key = jax.random.fold_in(jax.random.key(self.seed), state.step)
            differentiate = self._at_once if self.accumulate == 1 else self._accumulated
            gradients, metrics, variables, pushed = differentiate(losses, state, batches, key)
            if self.guidance.project is not None:
                held = nnx.merge(self.structure(), *_anew((state.parameters, variables, state.kept)))
                gradients = self.guidance.project(held, gradients)
            # Judge by the norm, which clipping needs in any case: one number tells whether any gradient is not finite.
            found = {name: task["loss"] for name, task in metrics.items()}
            norm, bad = judge_numbers(found, gradients)
            spikes = state.spikes
            if spikes is not None:
                spikes, odd = judge_spikes(spikes, found, norm, self.skip_spikes)
                bad = {name: jnp.where(odd[name] & (code == 0), SPIKE, code) for name, code in bad.items()}
            metrics = {name: {**task, "gradient_norm": norm, "bad": bad[name]} for name, task in metrics.items()}
            good = jnp.stack([code == 0 for code in bad.values()]).all()
            # Choose inside the compiled step: no host has to wait to undo a bad one. Take one way or the other, as a choice
            # between two whole states costs as much memory traffic as an optimizer does.
            advanced = partial(self._advanced, tuple(losses))
            done = jax.lax.cond(good, advanced, lambda state, *_: state, state, gradients, variables, pushed)
            return replace(done, step=state.step + 1, spikes=spikes), metrics

        # Pin the shardings of the result: the compiler might lay arrays otherwise, and the next step would compile again.
        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(run, donate_argnums=0, out_shardings=(state_shardings, replicated))

    def gradient(
        self, name: str, loss: LossFunction
    ) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], Any]:
        """Compile the gradient of one task's loss, unweighted, by all parameters, frozen ones too: (state, whole batch, key) →
        gradients."""

        def run(state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
            return self._at_once({name: (loss, 1.0)}, replace(state, optimizer=None), {name: batch}, key)[0]

        return jax.jit(run)

    def _advanced(
        self, names: Sequence[str], state: TrainState, gradients: Any, variables: Any, pushed: Any
    ) -> TrainState:
        """The state after the gradients of the losses `names`, but for its step."""
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = apply_updates(state.parameters, updates)
        model = nnx.merge(self.structure(), *_anew((parameters, variables, state.kept)))
        advance(model, list(names), pushed, state.step, self.steps)
        if self.guidance.witness is not None:
            self.guidance.witness(model, gradients, state.parameters)
        _, parameters, kept, _ = nnx.split(model, nnx.Param, Kept, ..., graph=False)
        ema = None if state.ema is None else advance_ema(state.ema, self.ema, parameters, optimizer)
        return replace(state, parameters=parameters, variables=variables, optimizer=optimizer, kept=kept, ema=ema)

    def parameter_names(self) -> list[str]:
        """The parameters in the order in which the metric "bad" counts them: 1 is a loss that is not finite, 2 + i a
        gradient, that of parameter i first, and 2 + their number a gradient so large that its norm is not finite. SPIKE is a
        spike."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.state(self.abstract_model(), nnx.Param))
        return [path_name(path) for path, _ in leaves]

    def _run(
        self, parameters: Any, variables: Any, losses: Any, batches: Any, key: jax.Array, state: TrainState
    ) -> Any:
        """Run every task's loss. Returns losses by task, the variables afterwards, what tasks pushed, and the heads."""
        parameters = without_frozen(state.optimizer, parameters)
        # Flax refuses a loss that changes what is kept: that is for `advance`, once a step.
        model = nnx.merge(self.structure(), *_anew((parameters, variables)), state.kept)
        found = {}
        for name, (function, _) in losses.items():
            # Take the key from the name, so that a task draws the same whoever trains beside it.
            task_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            found[name] = function(model, batches[name], key=task_key, step=state.step)
        pushed = take_pushed(model)
        heads = model.heads if self.balance == "uncertainty" else dict.fromkeys(losses, {})
        return found, nnx.split(model, nnx.Param, Kept, ..., graph=False)[3], pushed, heads

    def _at_once(self, losses: Any, state: TrainState, batches: Any, key: jax.Array) -> Any:
        """Gradients, metrics, variables, and what is pushed, of whole batches."""

        def apart(parameters: Any) -> Any:
            found, variables, pushed, heads = self._run(parameters, state.variables, losses, batches, key, state)
            metrics, each = {}, {}
            for name, (_, weight) in losses.items():
                value, more = as_scalars(*found[name])
                counted, balance = balanced(heads[name], value, value)
                each[name] = weight * counted
                metrics[name] = {"loss": value, **more, **balance}
            return each, (metrics, variables, pushed)

        if (self.balance in APART or self.guidance.combine is not None) and len(losses) > 1:
            each, pull, aside = jax.vjp(apart, state.parameters, has_aux=True)
            # Pull back one task at a time: a forward pass serves all of them.
            alone = [{name: jnp.float32(name == task) for name in each} for task in each]
            gradients = [pull(one)[0] for one in alone]
            if self.guidance.combine is not None:
                return self.guidance.combine(gradients), *aside
            if self.balance == "equal":
                return of_equal_length(gradients, [losses[name][1] for name in each]), *aside
            return without_conflict(gradients, jax.random.fold_in(key, 0)), *aside

        def total(parameters: Any) -> Any:
            each, aside = apart(parameters)
            return sum(each.values(), jnp.float32(0)), aside

        gradients, aside = jax.grad(total, has_aux=True)(state.parameters)
        return gradients, *aside

    def _accumulated(self, losses: Any, state: TrainState, batches: Any, key: jax.Array) -> Any:
        """The same in micro-batches, which see the variables one after another. Gradients are summed in float32."""
        indices = jnp.arange(self.accumulate, dtype=jnp.uint32)

        def look(_: None, inputs: Any) -> Any:
            batch, i = inputs
            part_key = jax.random.fold_in(key, i)
            found = self._run(state.parameters, state.variables, losses, batch, part_key, state)[0]
            return None, {name: needs(loss) for name, (loss, _) in found.items()}

        # Mostly counts of what is in the batch: the compiler drops the forward passes that nobody asks for here.
        _, needed = jax.lax.scan(look, None, (batches, indices))
        known = {name: joined(each) for name, each in needed.items()}

        def total(parameters: Any, variables: Any, batch: Any, i: jax.Array) -> Any:
            part_key = jax.random.fold_in(key, i)
            found, variables, pushed, heads = self._run(parameters, variables, losses, batch, part_key, state)
            metrics, slope = {}, jnp.zeros((), jnp.float32)
            for name, (_, weight) in losses.items():
                loss, extra = found[name]
                value, same_gradient = part_of(loss, known[name], i, self.accumulate)
                counted, balance = balanced(heads[name], value, same_gradient, self.accumulate)
                slope = slope + weight * counted
                metrics[name] = {**extra, **balance, "loss": Sum(value)}
            return slope, (metrics, variables, pushed)

        def micro(carry: Any, inputs: Any) -> Any:
            sums, variables = carry
            gradients, aside = jax.grad(total, has_aux=True)(state.parameters, variables, *inputs)
            metrics, variables, pushed = aside
            sums = jax.tree.map(lambda s, g: s + g.astype(jnp.float32), sums, gradients)
            return (sums, variables), (metrics, pushed)

        # Sum in float32: a hundred bfloat16 gradients added up would lose the last of them.
        zero = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), state.parameters)
        (sums, variables), (stacked, pushed) = jax.lax.scan(micro, (zero, state.variables), (batches, indices))
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pushed)  # as they stand in the whole batch
        gradients = jax.tree.map(lambda s, p: s.astype(p.dtype), sums, state.parameters)
        metrics = {name: joined_metrics(each, known[name]) for name, each in stacked.items()}
        return gradients, metrics, variables, rows


def _anew(tree: Any) -> Any:
    """The same with new variables: one may only be changed in the trace that made it."""
    return jax.tree.map(lambda x: x, tree)
