"""State that is not a parameter: what a task keeps between steps, such as a momentum encoder or a queue of keys.

A task that has a method `state(model)` returns such modules by name, and finds them as `model.state[task][name]`. In its
loss they are as they were before the step, whatever part of the batch it sees, and `push` hands them rows of it. The step
advances them once, after the parameters: with the rows of the whole batch in their order, however it was split over
devices and micro-batches. They begin when published weights are in place, and are sharded, checkpointed and fingerprinted
like parameters, but have no gradient and are not counted as such. A step that is skipped, and one that trains other tasks
only, leaves them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from unimodal.errors import UsageError
from unimodal.sharding import path_name

Pushed = Mapping[str, Mapping[str, Sequence[jax.Array]]]  # task → its state's name → what was pushed, [B,...] each


class Kept(nnx.Variable):
    """An array that is kept between steps and is no parameter. Metadata `axes` as parameters have them."""


class TaskState(nnx.Module):
    """Something that is kept between steps. What it keeps are `Kept`s."""

    def begin(self, model: Any) -> None:
        """Take what it starts from of the model, whose parameters are those of the first step."""

    def push(self, rows_B: jax.Array) -> None:
        """Called in a loss: hand rows of the batch, [B,...], to this step's `advance`. No gradient goes through them."""
        if not hasattr(self, "pushed"):
            self.pushed = nnx.List([])
        self.pushed.append(Kept(jax.lax.stop_gradient(rows_B)))

    def advance(self, model: Any, rows: jax.Array | None, step: jax.Array, steps: int) -> None:
        """Go on after step number `step` (counted from 0) of `steps`. The model has its new parameters, and may be given
        others, such as a codebook of running means.

        rows: what was pushed, of the whole batch; None if nothing was.
        """


class Momentum(TaskState):
    """A copy of parts of the model that follows them slowly: ξ ← m ξ + (1 − m) θ after each step, in float32.

    parts: dotted names, such as "backbones.shared" or "heads.moco.projector". momentum: m. final: what m rises to over the
    run, along half a cosine (BYOL, MoCo v3: 1.0). None: it stays (MoCo).
    """

    def __init__(self, model: Any, parts: Sequence[str], momentum: float = 0.99, final: float | None = None):
        for name, value in (("momentum", momentum), ("final", final)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} of a momentum copy must be from 0 to 1, but is {value}")
        self.parts, self.momentum, self.final = tuple(parts), momentum, final
        found = _within(model, self.parts)
        self.weights: Any = nnx.Dict({name: Kept(_copied(p), **p.get_metadata()) for name, p in found.items()})

    def of(self, model: Any) -> Any:
        """The model with the copy in the place of its parts: `task.embed(momentum.of(model), batch)`. It has no gradient."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_variable)

        def chosen(name: str, leaf: Any) -> Any:
            if name not in self.weights or not isinstance(leaf, nnx.Param):
                return leaf
            return leaf.replace(jax.lax.stop_gradient(self.weights[name].get_value()).astype(leaf.get_value().dtype))

        return structure.unflatten(chosen(path_name(path), leaf) for path, leaf in leaves)

    def at(self, step: jax.Array, steps: int) -> jax.Array:
        """The momentum of step number `step` of `steps`."""
        if self.final is None:
            return jnp.float32(self.momentum)
        share = jnp.minimum(step.astype(jnp.float32) / max(1, steps), 1.0)
        return self.final - (self.final - self.momentum) * (jnp.cos(jnp.pi * share) + 1) / 2

    def begin(self, model: Any) -> None:
        for name, parameter in _within(model, self.parts).items():
            self.weights[name].set_value(_copied(parameter))

    def advance(self, model: Any, rows: jax.Array | None, step: jax.Array, steps: int) -> None:
        momentum = self.at(step, steps)
        for name, parameter in _within(model, self.parts).items():
            self.weights[name].set_value(towards(self.weights[name].get_value(), _copied(parameter), 1 - momentum))


class Queue(TaskState):
    """The rows that were pushed last, `size` of them, in a ring. rows: [size, *shape], zero until they are `valid`.

    wait: the steps of the run in which nothing is taken yet, as rows of so early a model would mislead.
    """

    def __init__(self, size: int, *shape: int, wait: int = 0, dtype: DTypeLike = jnp.float32):
        if size < 1:
            raise UsageError(f"a queue must hold at least 1 row, but its size is {size}")
        self.wait = wait
        self.rows = Kept(jnp.zeros((size, *shape), dtype), axes=("batch", *["hidden"] * len(shape)))
        self.place = Kept(jnp.zeros((), jnp.int32))  # where the next row goes
        self.filled = Kept(jnp.zeros((), jnp.int32))  # how many rows have been written, at most `size`

    def valid(self) -> jax.Array:
        """[size], whether a row has been written yet."""
        return jnp.arange(self.rows.get_value().shape[0]) < self.filled.get_value()

    def push(self, rows_B: jax.Array) -> None:
        held = self.rows.get_value()
        if rows_B.shape[1:] != held.shape[1:]:
            raise UsageError(f"a queue of rows {list(held.shape[1:])} cannot take rows {list(rows_B.shape[1:])}")
        super().push(rows_B.astype(held.dtype))

    def advance(self, model: Any, rows: jax.Array | None, step: jax.Array, steps: int) -> None:
        if rows is None:
            return
        held, before, count = self.rows.get_value(), self.place.get_value(), rows.shape[0]
        size, takes = held.shape[0], step >= self.wait
        # Of each slot: which of the last `size` rows goes there, if any. So every shard fills its own slots.
        skipped = max(0, count - size)
        place = (before + skipped) % size
        which = (jnp.arange(size) - place) % size
        new = takes & (which < count - skipped)
        taken = rows[jnp.minimum(which + skipped, count - 1)]
        self.rows.set_value(jnp.where(new.reshape(-1, *[1] * (held.ndim - 1)), taken, held))
        self.place.set_value(jnp.where(takes, (place + count - skipped) % size, before))
        self.filled.set_value(jnp.minimum(self.filled.get_value() + jnp.where(takes, count, 0), size))


class RunningCodebook(TaskState):
    """Codes that are running means of the vectors nearest to them (van den Oord 2017, appendix A.1).

    It sets the parameter `vectors` [V,D] of a tokenizer after each step, so that the codes are in the weights; they have no
    gradient. pushed rows: vectors [B,...,D]. Counts are relative: 1 is what a code would have if all were as common, whatever
    the batch. A code whose running count is below `revive` starts again at one of the batch's vectors, with that count: it
    follows the first vectors that choose it, and starts once more if none does. So do the codes that a model is made with.
    The codes of another run count 1 each when a run starts from them, and stay.

    Checkpoints from before counts were relative hold them in vectors per step. Their codes are right at once, and their counts
    after some hundred steps (at a decay of 0.99), in which codes move, and begin again, at another pace.
    """

    def __init__(self, model: Any, tokenizer: str, decay: float = 0.99, revive: float = 0.05):
        self.tokenizer, self.decay, self.revive = tokenizer, decay, revive
        vectors = model.tokenizers[tokenizer].vectors
        axes = vectors.get_metadata()["axes"]
        self.count = Kept(jnp.full(vectors.get_value().shape[:1], revive), axes=axes[:1])
        self.total = Kept(jnp.array(vectors.get_value(), copy=True), axes=axes)  # as drawn, until it begins

    def begin(self, model: Any) -> None:
        placed = model.tokenizers[self.tokenizer].vectors.get_value()
        # Compare copies, not products, which a compiler may round otherwise.
        fresh = jnp.all(placed == self.total.get_value())  # nothing has taken the place of what was drawn
        count = jnp.where(fresh, self.revive, jnp.ones_like(self.count.get_value()))
        self.count.set_value(count)
        self.total.set_value(count[:, None] * placed)

    def advance(self, model: Any, rows: jax.Array | None, step: jax.Array, steps: int) -> None:
        if rows is None:
            return
        tokenizer = model.tokenizers[self.tokenizer]
        rows = rows.reshape(-1, rows.shape[-1])
        entries = self.count.get_value().shape[0]
        chosen = jax.nn.one_hot(tokenizer.nearest(rows), entries)
        chosen = chosen * (entries / rows.shape[0])
        count = towards(chosen.sum(axis=0), self.count.get_value(), self.decay)
        total = towards(chosen.T @ rows, self.total.get_value(), self.decay)
        dead = count < self.revive
        drawn = rows[jax.random.randint(jax.random.fold_in(jax.random.key(0), step), (entries,), 0, rows.shape[0])]
        count = jnp.where(dead, self.revive, count)
        total = jnp.where(dead[:, None], self.revive * drawn, total)
        self.count.set_value(count)
        self.total.set_value(total)
        tokenizer.vectors.set_value(total / count[:, None])


def towards(old: jax.Array, new: jax.Array, share: jax.Array | float) -> jax.Array:
    """`share` of the way from old to new: exactly where it is, if both are equal or the share is 0."""
    return old + share * (new - old)


# ---- what the step does with them ----------------------------------------------------------------------------------


def begin(model: Any) -> None:
    """Begin all state of a model whose parameters are in place."""
    for _, _, state in _states(model):
        state.begin(model)


def take_pushed(model: Any) -> Pushed:
    """Take what a loss has pushed out of the model, which is then as it was before."""
    found: dict[str, dict[str, list[jax.Array]]] = {}
    for task, name, state in _states(model):
        if hasattr(state, "pushed"):
            found.setdefault(task, {})[name] = [rows.get_value() for rows in state.pushed]
            del state.pushed
    return found


def advance(model: Any, tasks: Sequence[str], pushed: Pushed, step: jax.Array, steps: int) -> None:
    """Advance the state of the tasks that a step has trained."""
    for task, name, state in _states(model):
        if task in tasks:
            rows = pushed.get(task, {}).get(name)
            state.advance(model, None if rows is None else jnp.concatenate(rows), step, steps)


def _states(model: Any) -> Iterator[tuple[str, str, TaskState]]:
    """Task, name and state."""
    for task, states in getattr(model, "state", {}).items():
        for name, state in states.items():
            yield task, name, state


def _within(model: Any, parts: Sequence[str]) -> dict[str, nnx.Param]:
    """The parameters of some parts by dotted name. Raises UsageError for a part that has none."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_variable)[0]
    known = {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, nnx.Param)}
    for part in parts:
        if not any(f"{name}.".startswith(f"{part}.") for name in known):
            there = sorted({".".join(name.split(".")[: part.count(".") + 1]) for name in known})
            raise UsageError(f"a momentum copy of {part!r}: there is no such part; there is {', '.join(there)}")
    return {n: p for n, p in known.items() if any(f"{n}.".startswith(f"{part}.") for part in parts)}


def _copied(parameter: nnx.Param) -> jax.Array:
    """The parameter in float32, in a buffer of its own, for those of a state are given away one by one."""
    return jnp.array(parameter.get_value(), jnp.float32, copy=True)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
