"""Elastic weight consolidation: weights are held by their squared gradients (Kirkpatrick 2017, online as in Schwarz 2018).

Reads strength, decay and batches.
"""

from __future__ import annotations

from unimodal.continual.anchor import Anchored
from unimodal.continual.strategy import Plan, Run
from unimodal.training.checkpoint import named
from unimodal.training.importance import squared_gradients


class Strategy(Anchored):
    """Ω ← decay·Ω + E[g²], g the gradient of one example's loss when a task has ended, told by those of batches."""

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        return self.consolidating(
            plan,
            run,
            lambda task, state: named(
                squared_gradients(run.program, [task], state, {task.name: run.fresh(task)}, self.config.batches)
            ),
        )
