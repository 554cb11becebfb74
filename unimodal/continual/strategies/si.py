"""Synaptic intelligence: weights are held by what moving them did for the loss (Zenke 2017).

Reads strength, decay and damping. Zenke's c is strength / 2. Otherwise than there, a weight whose path raised the loss has
importance 0 and not less, so that the penalty pushes nothing away.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from unimodal.continual.anchor import NAME, Anchor, Anchored, like, parameters_of, wide
from unimodal.continual.strategy import OWNER, Plan, Run, StateMakers, between, rewritten
from unimodal.training.checkpoint import named
from unimodal.training.guidance import Guidance
from unimodal.training.step import TrainState


class Path(Anchor):
    """An anchor that also keeps ω of every parameter: minus the sum over the task's steps of gradient times change."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.gained: Any = nnx.Dict({n: like(p, jnp.zeros_like(wide(p))) for n, p in parameters_of(model).items()})

    def walk(self, model: Any, gradient: Any, before: Any, strength: float) -> None:
        """One step from `before` to the model's parameters along `gradient`, of the loss with strength times the penalty."""
        gradients, starts = named(gradient), named(before)
        for name, p in parameters_of(model).items():
            start = starts[name].astype(jnp.float32)
            # The penalty is no task's: take its gradient, which is known, away again.
            held = strength * self.importance[name].get_value() * (start - self.weights[name].get_value())
            own = gradients[name].astype(jnp.float32) - held
            self.gained[name].set_value(self.gained[name].get_value() - own * (wide(p) - start))

    def arrive(self, model: Any, decay: float, damping: float) -> None:
        """A task has ended: Ω ← decay·Ω + max(0, ω) / ((θ − θ*)² + damping), then θ* ← θ and ω ← 0 (equation 5)."""
        found = {
            name: jnp.maximum(self.gained[name].get_value(), 0)
            / (jnp.square(wide(p) - self.weights[name].get_value()) + damping)
            for name, p in parameters_of(model).items()
        }
        self.consolidate(model, found, lambda before, new: decay * before + new)
        for kept in self.gained.values():
            kept.set_value(jnp.zeros_like(kept.get_value()))


class Strategy(Anchored):
    """The path is walked in every step, and needs no data when a task has ended."""

    def states(self) -> StateMakers:
        return {OWNER: lambda model: {NAME: Path(model)}}

    def guidance(self) -> Guidance:
        def witness(model: Any, gradient: Any, before: Any) -> None:
            model.state[OWNER][NAME].walk(model, gradient, before, self.config.strength)

        return Guidance(witness=witness)

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        def arrive(_name: str, state: TrainState) -> TrainState:
            change = lambda model: model.state[OWNER][NAME].arrive(model, self.config.decay, self.config.damping)  # noqa: E731
            return rewritten(run.program, state, change)

        return between(self.guarded(plan), arrive)
