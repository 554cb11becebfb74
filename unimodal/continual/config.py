"""The strategies of continual learning by name, and their numbers."""

from __future__ import annotations

import math
import pkgutil
from dataclasses import dataclass
from pathlib import Path

from unimodal.errors import UsageError, check_fields

# A new file in the folder is a new strategy. Listed without importing it, as this module stands below.
STRATEGIES = tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "strategies")])))


@dataclass(frozen=True)
class ContinualConfig:
    """What is done against forgetting, for schedule="sequence". Each module of `strategies` says which fields it reads."""

    strategy: str = "fine_tuning"  # one of STRATEGIES
    strength: float = 1.0  # of a penalty or a distillation, or of the loss on what is remembered
    decay: float = 1.0  # ewc, mas and si: what earlier importance counts after another task; 1 is a sum over tasks
    damping: float = 0.1  # si: ξ, which keeps the importance of weights that hardly moved finite
    batches: int = 16  # ewc, l2 and mas: batches of a task by which importance is told when it has ended
    memory: int = 200  # replay, agem and der: examples kept of each task
    memory_share: float = 0.0  # replay and agem: so large a share of each task's examples instead; 0: `memory`
    balanced: bool = False  # replay, agem and der: as many of each class as there are; False: chosen uniformly
    distillation: float = 0.5  # der: weight of the distance from remembered logits, beside the loss there
    temperature: float = 2.0  # lwf: divides the logits of both models
    directions: int = 50  # ogd: gradients kept of each task, each as large as the model

    def __post_init__(self) -> None:
        least = dict(strength=0, decay=0, batches=1, memory=1, distillation=0, directions=1)
        check_fields("continual", self, least=least, among=dict(strategy=STRATEGIES))
        if not 0 <= self.memory_share <= 1:
            raise UsageError(f"continual memory_share must be from 0 to 1, but is {self.memory_share}")
        for name in ("damping", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"continual {name} must be above 0 and finite, but is {getattr(self, name)}")
