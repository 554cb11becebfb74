"""`launch.py plan`: the memory and time of a run, before anybody rents a chip.

The train step is compiled ahead of time for a topology and its program read: memory, FLOPs, collectives, kernels.
"""

from unimodal.plan.command import run_plan
from unimodal.plan.compile import Memory, Plan, plan
from unimodal.plan.topology import Topology, open_topology

__all__ = ["Memory", "Plan", "Topology", "open_topology", "plan", "run_plan"]
