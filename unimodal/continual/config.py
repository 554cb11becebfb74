"""The strategies of continual learning by name."""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.errors import check_fields

STRATEGIES = ("fine_tuning", "l2", "ewc", "replay")


@dataclass(frozen=True)
class ContinualConfig:
    """What is done against forgetting, for schedule="sequence".

    fine_tuning: nothing. l2: weights that earlier tasks used are held where they were. ewc: the same, each as strongly as it
    mattered (Kirkpatrick 2017, in the online form of Schwarz 2018). replay: remembered examples of earlier tasks are trained
    on again (Chaudhry 2019).
    """

    strategy: str = "fine_tuning"  # one of STRATEGIES
    strength: float = 1.0  # of the penalty of l2 and ewc, or of the loss on what replay remembers
    decay: float = 1.0  # ewc: what earlier importance counts after another task; 1 is a sum over tasks
    batches: int = 16  # ewc and l2: batches of a task by which importance is told when it has ended
    memory: int = 200  # replay: examples kept of each task

    def __post_init__(self) -> None:
        check_fields(
            "continual", self, least=dict(strength=0, decay=0, batches=1, memory=1), among=dict(strategy=STRATEGIES)
        )

    @property
    def anchors(self) -> bool:
        """Whether weights are held where they were."""
        return self.strategy in ("l2", "ewc")
