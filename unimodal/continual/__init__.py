"""Learning one task after another without forgetting: strategies, what they keep, and how forgetting is measured.

| module | what it does |
|---|---|
| `config` | the strategies by name, with their numbers |
| `anchor` | the weights after earlier tasks, how much each mattered, and the penalty for leaving them |
| `memory` | examples of earlier tasks that are trained on again |
| `plan` | a config's strategy put to work: losses, batches, and what happens between tasks |
| `matrix` | R[i,j], the score of task j after task i, and what is made of it |
"""

from unimodal.continual.config import ContinualConfig

__all__ = ["ContinualConfig"]
