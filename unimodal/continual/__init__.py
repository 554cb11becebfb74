"""Learning one task after another without forgetting: strategies, what they keep, and how forgetting is measured.

| module | what it does |
|---|---|
| `config` | the strategies by name, with their numbers |
| `strategy` | what a strategy may do: keep state, guide gradients, change losses and batches, act between tasks |
| `strategies/` | one module for each; a new file is a new strategy |
| `anchor` | the weights after earlier tasks, how much each mattered, and the penalty for leaving them |
| `memory` | examples of earlier tasks that are trained on again |
| `outputs` | what tasks answer, and gradients of single examples |
| `matrix` | R[i,j], the score of task j after task i, and what is made of it |
"""

from unimodal.continual.config import ContinualConfig

__all__ = ["ContinualConfig"]
