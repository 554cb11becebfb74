"""Memory-aware synapses: weights are held by how much the outputs depend on them (Aljundi 2018). Needs no labels.

Reads strength, decay and batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.continual.anchor import Anchored, parameters_of
from unimodal.continual.outputs import check_outputs, fold_gradients
from unimodal.continual.strategy import Plan, Run
from unimodal.training.checkpoint import named
from unimodal.training.step import TrainState


class Strategy(Anchored):
    """Ω ← decay·Ω + mean over examples of |∂‖F(x)‖²/∂θ|, F what evaluations judge (equations 2 and 3)."""

    def check(self) -> None:
        check_outputs(self.config.strategy, self.tasks)

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        return self.consolidating(plan, run, lambda task, state: self.sensitivity(run, task, state))

    def sensitivity(self, run: Run, task: Any, state: TrainState) -> Mapping[str, jax.Array]:
        """The mean over `batches` batches of the absolute gradient of one example's squared outputs, by parameter."""
        count = self.config.batches * task.batch_size
        zero = {
            n: jnp.zeros(p.get_value().shape, jnp.float32) for n, p in parameters_of(run.program.model(state)).items()
        }

        def squares(model: Any, row: Mapping[str, jax.Array]) -> jax.Array:
            return jnp.square(task.judged(model, row).astype(jnp.float32)).sum()

        def add(total: Any, gradient: Any) -> Any:
            return {n: total[n] + jnp.abs(g.astype(jnp.float32)) / count for n, g in named(gradient).items()}

        return fold_gradients(run.program, state, run.fresh(task), count, squares, zero, add)
