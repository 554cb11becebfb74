"""Experience replay: remembered examples of earlier tasks are trained on again, beside each batch (Chaudhry 2019).

Reads strength, memory, memory_share and balanced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimodal.continual.memory import bytes_by_task, with_memory
from unimodal.continual.strategy import Plan, Run
from unimodal.continual.strategy import Strategy as Base
from unimodal.training.sequence import InSequence


class Strategy(Base):
    """As many remembered examples in all as the batch has; their mean loss counts `strength`."""

    def put_to_work(self, plan: Plan, run: Run) -> Plan:
        return with_memory(self.config, plan, run)

    def memory_bytes(self, model: Any, schedule: InSequence) -> Mapping[str, int]:
        return bytes_by_task(self.config, self.tasks, model, schedule)
